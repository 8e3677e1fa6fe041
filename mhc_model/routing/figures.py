"""What the streams do: figures of stability and routing, gathered while a model runs.

    with watch_routing(decoder) as routing:
        decoder(tokens)
    routing.summary()

    prompt_routing(decoder, tokens, gates).sublayers[0].res  # of each token of one prompt

Axes: b batch, t token, n streams (senders), m streams (receivers), c channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mhc_model.decoder import Decoder, watching
from mhc_model.errors import EngineError, GateError
from mhc_model.gates import RequestGates
from mhc_model.streams import Coefficients, doubly_stochastic_error, gated


class SublayerRouting(NamedTuple):
    """One sublayer over all tokens seen; float32 on the CPU, means unless said otherwise."""

    pre: Tensor  # (n,): H_pre
    post: Tensor  # (n,): H_post
    res: Tensor  # (n, m): H_res before the gate
    gate: Tensor  # (): the gate
    identity_distance: Tensor  # (): Frobenius norm of the gated H_res - I; sqrt(2 n) at most
    similarity: Tensor  # (): cosine of pairs of streams before the sublayer
    row_error: Tensor  # (): worst distance of a row sum of H_res from one
    column_error: Tensor  # (): the same of a column sum
    drift: Tensor  # (): largest |H_res - H_res at init|


class TokenRouting(NamedTuple):
    """One sublayer, token by token; float32. The leading axes are those of the streams it saw."""

    pre: Tensor  # (..., n): H_pre
    post: Tensor  # (..., n): H_post
    res: Tensor  # (..., n, m): H_res before the gate
    identity_distance: Tensor  # (...): Frobenius norm of the gated H_res - I
    similarity: Tensor  # (...): mean cosine of pairs of streams before the sublayer
    row_error: Tensor  # (...): distance of the worst row sum of H_res from one
    column_error: Tensor  # (...): the same of a column sum


class PromptRouting(NamedTuple):
    """What the streams of one prompt do; everything on the CPU."""

    gates: Tensor  # (2L,): those used
    sublayers: list[TokenRouting]  # 2L, in gate order; the leading axis is (t,)
    composite_gains: list[float]  # 2L; see `Routing.composite_gains`


@torch.no_grad()
def token_routing(x: Tensor, coefficients: Coefficients, gate: Tensor) -> TokenRouting:
    """The figures of one sublayer in one forward pass; arguments as `mhc_model.decoder.Watch`."""
    with torch.autocast(x.device.type, enabled=False):  # figures are float32
        pre, post, res = coefficients
        n = res.shape[-1]
        off_identity = gated(res, gate) - torch.eye(n, device=res.device)
        first, second = torch.triu_indices(n, n, 1, device=x.device).unbind()
        streams = F.normalize(x.float(), dim=-1)
        return TokenRouting(
            pre,
            post,
            res,
            off_identity.square().sum(dim=(-2, -1)).sqrt(),
            (streams @ streams.mT)[..., first, second].mean(dim=-1),
            *doubly_stochastic_error(res),
        )


class Routing:
    """Sums over the forward passes of one decoder, a record per sublayer."""

    def __init__(self, decoder: Decoder) -> None:
        connections = decoder.connections()
        if not connections:
            raise GateError("this model is plain (mhc: null): it has no routing")
        self._starts = [connection.initial_res() for connection in connections]
        self._sums: list[list[Tensor]] = [[] for _ in connections]
        self._worst = [torch.zeros(3) for _ in connections]
        self._tokens = [0 for _ in connections]
        self._product: Tensor | None = None
        self._gains = [1.0 for _ in connections]

    @torch.no_grad()
    def __call__(self, index: int, x: Tensor, coefficients: Coefficients, gate: Tensor) -> None:
        """Takes in one sublayer of one forward pass; arguments of `mhc_model.decoder.Watch`."""
        if x.shape[0] and x.shape[1]:
            with torch.autocast(x.device.type, enabled=False):  # figures are float32
                self._take(index, x, coefficients, gate)

    def _take(self, index: int, x: Tensor, coefficients: Coefficients, gate: Tensor) -> None:
        found = token_routing(x, coefficients, gate)
        per_token = (
            found.pre,
            found.post,
            found.res,
            (gate if gate.ndim == 2 else gate[:, None]).expand(found.pre.shape[:2]),
            found.identity_distance,
            found.similarity,
        )
        sums = [value.sum(dim=(0, 1)).double().cpu() for value in per_token]
        before = self._sums[index]
        self._sums[index] = [a + b for a, b in zip(before, sums, strict=True)] if before else sums
        drift = (found.res - self._starts[index].to(found.res.device)).abs()
        worst = torch.stack([found.row_error.max(), found.column_error.max(), drift.max()]).cpu()
        self._worst[index] = torch.maximum(self._worst[index], worst)
        self._tokens[index] += found.similarity.numel()
        self._compose(index, gated(found.res, gate))

    def _compose(self, index: int, mixing: Tensor) -> None:
        """The product of the mixings of one forward pass so far, and its amax gain."""
        # What the streams before the first sublayer send to those after this one.
        if index == 0 or self._product is None or self._product.shape != mixing.shape:
            self._product = mixing.double()
        else:
            self._product = self._product @ mixing.double()
        product = self._product.abs()
        gain = torch.maximum(product.sum(dim=-1).max(), product.sum(dim=-2).max())
        self._gains[index] = max(self._gains[index], float(gain))

    @property
    def composite_gains(self) -> list[float]:
        """By depth: largest absolute row or column sum of the product of a token's mixings so far.

        "Amax gain magnitude" of arXiv:2512.24880; 1 for doubly stochastic matrices.
        """
        return self._gains

    def sublayers(self) -> list[SublayerRouting]:
        """The records in gate order.

        Raises:
            GateError: if no forward pass was seen.
        """
        if not all(self._tokens):
            raise GateError("no forward pass was watched; run the model inside watch_routing")
        records = []
        for sums, worst, tokens in zip(self._sums, self._worst, self._tokens, strict=True):
            means = [(value / tokens).float() for value in sums]
            records.append(SublayerRouting(*means, *worst.unbind()))
        return records

    def summary(self) -> dict[str, float | list[float]]:
        """Figures for logs: numbers over the model, lists of 2L over its sublayers."""
        records = self.sublayers()
        distance = [round(float(record.identity_distance), 6) for record in records]
        similarity = [round(float(record.similarity), 6) for record in records]
        return {
            "composite_gain": max(self.composite_gains),
            "row_error": max(float(record.row_error) for record in records),
            "column_error": max(float(record.column_error) for record in records),
            "h_res_drift": max(float(record.drift) for record in records),
            "stream_similarity": sum(similarity) / len(similarity),
            "h_pre_own": sum(float(record.pre.max()) for record in records) / len(records),
            "h_post_mean": sum(float(record.post.mean()) for record in records) / len(records),
            "h_post_spread": sum(float(record.post.std()) for record in records) / len(records),
            "composite_gain_by_depth": [round(gain, 6) for gain in self.composite_gains],
            "identity_distance": distance,
            "stream_similarity_by_sublayer": similarity,
        }


@torch.no_grad()
def prompt_routing(
    decoder: Decoder, tokens: Sequence[int], gates: RequestGates = None
) -> PromptRouting:
    """Runs one prompt and says what its streams do at each token.

    Args:
        decoder: has streams; not running elsewhere meanwhile.
        tokens: t ids, at least one, at most the context.
        gates: what `resolve_gates` takes, of which those of the prompt count.

    Raises:
        GateError: for a plain model, and for gates that `resolve_gates` refuses.
        EngineError: if there are no tokens, too many, or ids outside the vocabulary.
    """
    routing = Routing(decoder)
    vocabulary = decoder.config.vocab_size
    unknown = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if unknown is not None:
        raise EngineError(f"token {unknown} is outside the vocabulary of 0 to {vocabulary - 1}")
    if not tokens:
        raise EngineError("the prompt is empty; give at least one token")
    sublayers: list[TokenRouting] = []
    used: list[Tensor] = []

    def watch(index: int, x: Tensor, coefficients: Coefficients, gate: Tensor) -> None:
        routing(index, x, coefficients, gate)
        found = token_routing(x, coefficients, gate)
        sublayers.append(TokenRouting(*(value[0].float().cpu() for value in found)))
        used.append(gate[0].float().cpu())

    with watching(decoder, watch):
        device = decoder.embedding.weight.device
        rows = decoder.gate_rows_or_none([gates])
        decoder.hidden(torch.tensor([list(tokens)], device=device), rows)
    return PromptRouting(torch.stack(used), sublayers, routing.composite_gains)


@contextmanager
def watch_routing(decoder: Decoder) -> Iterator[Routing]:
    """Gathers routing figures of all forward passes inside; costs several passes over the streams.

    Raises:
        GateError: for a plain model.
    """
    routing = Routing(decoder)
    with watching(decoder, routing):
        yield routing
