"""Whether a checkpoint is whole and does what a model of ours must do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mhc_model.checkpoint.directory import Checkpoint, load_checkpoint
from mhc_model.decoder import Decoder, KVCache, watching
from mhc_model.streams import Coefficients, doubly_stochastic_error

TEXTS = ("It's 3 + 4 = 7.\n\tnaïve café,  two  spaces", "北京 🙂", "")
# Float32; matrices of another type are converted for the check.
CACHE_TOLERANCE = 1e-4
STOCHASTIC_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    finding: str


def validate_model(checkpoint: str | Path) -> list[Check]:
    """Runs all checks, on the CPU in float32.

    Raises:
        CheckpointError: if the directory cannot be loaded: hashes, keys and shapes are checked
            before anything else.
    """
    loaded = load_checkpoint(checkpoint, dtype=torch.float32)
    checks = [Check("files", True, f"sha256 of all files, content hash {loaded.content_hash[:12]}")]
    checks += _check_forward(loaded.model)
    checks += _check_streams(loaded.model)
    checks += _check_tokenizer(loaded)
    return checks


def _tokens(model: Decoder) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    length = min(24, model.config.max_seq_len)
    return torch.randint(model.config.vocab_size, (2, length), generator=generator)


@torch.no_grad()
def _check_forward(model: Decoder) -> Iterator[Check]:
    bad = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    finding = f"{model.count_parameters():,} parameters, {len(bad)} tensors not finite"
    yield Check("weights", not bad, finding + (f", first {bad[0]}" if bad else ""))
    tokens = _tokens(model)
    logits = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    uniform = math.log(model.config.vocab_size)
    yield Check(
        "forward",
        bool(logits.isfinite().all()),
        f"{loss:.2f} nats for random tokens (uniform {uniform:.2f})",
    )
    half = tokens.shape[1] // 2
    if half:
        cache = KVCache.allocate(model.config, len(tokens))
        parts = [model(tokens[:, :half], cache=cache), model(tokens[:, half:], cache=cache)]
        error = float((torch.cat(parts, 1) - logits).abs().max())
        scale = max(1.0, float(logits.abs().max()))
        passed = error <= CACHE_TOLERANCE * scale
        yield Check("cache", passed, f"largest difference of cached and whole logits {error:.1e}")


@torch.no_grad()
def _check_streams(model: Decoder) -> Iterator[Check]:
    if model.config.mhc is None:
        yield Check("streams", True, "plain model")
        return
    errors: list[float] = []

    def look(k: int, x: Tensor, coefficients: Coefficients, gates: Tensor) -> None:
        row, column = doubly_stochastic_error(coefficients.res)
        errors.append(max(float(row.max()), float(column.max())))

    tokens = _tokens(model)
    with watching(model, look):
        model(tokens)
    passed = max(errors) <= STOCHASTIC_TOLERANCE
    passed = passed or not model.config.mhc.constrained
    yield Check("H_res", passed, f"rows and columns sum to 1 within {max(errors):.1e}")
    if model.config.gateless is not None:
        yield Check("gates", True, f"none: {model.config.gateless}")
        return
    count = (len(tokens), model.config.n_gates)
    closed, opened = (model(tokens, torch.full(count, gate)) for gate in (0.0, 1.0))
    effect = float((closed - opened).abs().max())
    passed = bool(closed.isfinite().all() and opened.isfinite().all())
    yield Check("gates", passed, f"g = 0 and g = 1 differ by up to {effect:.1e} in the logits")


def _check_tokenizer(loaded: Checkpoint) -> Iterator[Check]:
    tokenizer, size = loaded.tokenizer, loaded.model.config.vocab_size
    if tokenizer is None:
        yield Check("tokenizer", True, "none: token ids only")
        return
    lost = [text for text in TEXTS if tokenizer.decode(tokenizer.encode(text)) != text]
    yield Check(
        "tokenizer",
        not lost and tokenizer.vocab_size <= size,
        f"{tokenizer.vocab_size} ids for {size} of the model"
        + (f", changes {lost[0]!r}" if lost else ", text survives"),
    )
