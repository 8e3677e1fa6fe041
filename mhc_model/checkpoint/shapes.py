"""Whether stored tensors are those of a configuration, and the model with them.

The comparison costs nothing whatever the configuration's sizes are, so it comes before room is made
for a model of these sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mhc_model.checkpoint.weights import WEIGHTS, Weights, find_weights
from mhc_model.config import ModelConfig
from mhc_model.decoder import Decoder, quiet_about_mixing
from mhc_model.errors import CheckpointError

T = TypeVar("T")

PREFIX = "model."  # transformers keeps the decoder under this name


def state_shapes(config: ModelConfig, source: str) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors, without its memory.

    Args:
        config: whose number of layers is known to be sane.
        source: named in errors.

    Raises:
        CheckpointError: if the sizes are more than any tensor can have.
    """
    try:
        with torch.device("meta"):
            model = Decoder(config, seed=None)
    except (RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{source}: its sizes make no model: {reason}") from None
    return {name: value.shape for name, value in model.state_dict().items()}


def own_weights(directory: Path) -> Weights:
    """The weights of a checkpoint by the decoder's own names, without transformers' prefix.

    Raises:
        CheckpointError: as `find_weights`.
    """
    weights = find_weights(directory)
    return Weights(own_names(weights.files), own_names(weights.stored))


def own_names(values: Mapping[str, T]) -> dict[str, T]:
    """Under the decoder's names."""
    if not all(name.startswith(PREFIX) for name in values):
        return dict(values)
    return {name.removeprefix(PREFIX): value for name, value in values.items()}


def check_shapes(config: ModelConfig, weights: Weights) -> None:
    """Compares a configuration with what is stored.

    Raises:
        CheckpointError: naming the file, and the tensor that is missing, unknown or of another
            shape.
    """
    files = sorted(set(weights.files.values()))
    first = files[0] if files else Path(WEIGHTS)
    layers = {int(i[1]) for name in weights.stored if (i := re.match(r"layers\.(\d{1,9})\.", name))}
    missing = next(i for i in range(len(layers) + 1) if i not in layers)
    if missing < config.n_layers:
        raise CheckpointError(
            f"{first} lacks the tensor 'layers.{missing}.attention.q_proj.weight': the "
            f"configuration has {config.n_layers} layers"
        )
    expected = state_shapes(config, str(first))
    for name, shape in expected.items():
        if name not in weights.stored:
            raise CheckpointError(f"{first} lacks the tensor {name!r}")
        if weights.stored[name].shape != tuple(shape):
            raise CheckpointError(
                f"{weights.files[name]}: {name!r} has shape {weights.stored[name].shape}, "
                f"the configuration needs {tuple(shape)}"
            )
    unknown = sorted(set(weights.stored) - set(expected))
    if unknown:
        raise CheckpointError(f"{weights.files[unknown[0]]} has the unknown tensor {unknown[0]!r}")


class _Unfilled(TorchFunctionMode):
    """Leaves new parameters as they come, so that memory not yet written costs nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("kaiming_uniform_", "uniform_", "normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def unfilled() -> AbstractContextManager[Any]:
    """Inside, new modules leave their matrices as they come: for weights that are loaded next."""
    return _Unfilled()


def with_tensors(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Decoder:
    """A model that holds these tensors themselves, in their dtype, in eval mode.

    Args:
        config: of the model.
        tensors: by the decoder's names, in the configuration's shapes. What is left out of the
            hyper-connections is as at the start. What belongs to them becomes float32.
    """
    with quiet_about_mixing(), unfilled():
        model = Decoder(config, seed=None)
    kept = {
        name: value.float() if "connection." in name or name == "gate_logits" else value
        for name, value in tensors.items()
    }
    model.load_state_dict(model.state_dict() | kept, assign=True)
    return model.eval()
