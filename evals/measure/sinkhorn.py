"""The projection of H_res at inference: fewer Sinkhorn-Knopp iterations instead of the limit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mhc_model.decoder import Decoder
from mhc_model.errors import ConfigError
from mhc_model.routing import watch_routing


def with_iterations(model: Decoder, iterations: int) -> Decoder:
    """A copy that shares the weights and projects with so many iterations.

    Raises:
        ConfigError: for a plain model, or one whose projection has no iterations.
    """
    config = model.config
    if config.mhc is None:
        raise ConfigError("this model is plain (mhc: null): it has no Sinkhorn iterations to set")
    if config.mhc.projection not in ("limit", "iterations"):
        raise ConfigError(
            f"this model's projection is {config.mhc.projection!r}: it has no Sinkhorn iterations "
            f"to set"
        )
    values = {**config.mhc.model_dump(), "projection": "iterations", "sinkhorn_iters": iterations}
    mhc = type(config.mhc).model_validate(values)
    copy = Decoder(config.model_copy(update={"mhc": mhc}))
    copy.to(model.embedding.weight.device)
    copy.load_state_dict(model.state_dict(), assign=True)
    return copy.eval()


@torch.inference_mode()
def projection_errors(model: Decoder, windows: Sequence[Sequence[int]]) -> dict[str, float]:
    """How far H_res is from doubly stochastic on these tokens: its worst row and column sum.

    Args:
        model: an mHC model.
        windows: token ids, each at most a context.
    """
    device = model.embedding.weight.device
    with watch_routing(model) as routing:
        for window in windows:
            model(torch.tensor([list(window)], device=device))
    records = routing.sublayers()
    return {
        "row_error": max(float(record.row_error) for record in records),
        "column_error": max(float(record.column_error) for record in records),
    }
