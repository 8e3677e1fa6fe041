"""Which kinds of tokens are mixed, and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mhc_model.decoder import Decoder, watching
from mhc_model.streams import Coefficients, gated
from mhc_model.tokenizer import Tokenizer

KINDS = ("separator", "number", "word", "part of a word", "sign", "space or line break")


def kind_of(text: bytes) -> str:
    """The kind of a token by its bytes; special tokens have none."""
    if not text:
        return "separator"
    bare = text.strip()
    if not bare:
        return "space or line break"
    if bare.isdigit():
        return "number"
    # Beyond ASCII every byte belongs to a letter as a rule.
    if all(chr(byte).isalpha() or byte in b"'" or byte > 127 for byte in bare):
        return "word" if text[:1] == b" " else "part of a word"
    return "sign"


@torch.inference_mode()
def mixing_by_kind(
    model: Decoder, tokenizer: Tokenizer, texts: Sequence[str], gates: Tensor | None = None
) -> tuple[np.ndarray, list[str], list[int]]:
    """Mean distance of the gated H_res from the identity, for each kind of token and sublayer.

    Args:
        model: an mHC model.
        tokenizer: its tokenizer.
        texts: read one by one, each after the document separator and up to one context.
        gates: (2L,) or None for the learned ones.

    Returns:
        (kinds, 2L) array, the kinds that occur, and how many tokens are of each.
    """
    device = model.embedding.weight.device
    distances: dict[int, list[Tensor]] = {}

    def watch(index: int, x: Tensor, coefficients: Coefficients, gate: Tensor) -> None:
        mixing = gated(coefficients.res, gate)
        off = mixing - torch.eye(mixing.shape[-1], device=mixing.device)
        distances.setdefault(index, []).append(off.square().sum(dim=(-2, -1)).sqrt()[0].cpu())

    kinds: list[str] = []
    with watching(model, watch):
        for text in texts:
            tokens = tokenizer.encode(text, bos=True)[: model.config.max_seq_len]
            kinds += [kind_of(tokenizer.token_bytes(token)) for token in tokens]
            row = None if gates is None else gates[None].to(device)
            model(torch.tensor([tokens], device=device), row)
    table = torch.stack([torch.cat(distances[index]) for index in sorted(distances)]).numpy()
    present = [kind for kind in KINDS if kind in kinds]
    own = [np.array([kind == one for one in kinds]) for kind in present]
    means = np.stack([table[:, mask].mean(axis=1) for mask in own])
    return means, present, [int(mask.sum()) for mask in own]
