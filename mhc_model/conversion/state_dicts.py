"""State dicts of transformers' models as ours and back: pure functions on dictionaries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from mhc_model.checkpoint import state_shapes
from mhc_model.config import ModelConfig
from mhc_model.conversion.families import Family, Rule
from mhc_model.errors import CheckpointError
from mhc_model.files import Stored


def plain_shapes(config: ModelConfig, source: str = "the configuration") -> dict[str, torch.Size]:
    """Our names and shapes of the model without its streams; costs no memory for its sizes.

    Raises:
        CheckpointError: if the sizes are more than any tensor can have.
    """
    return state_shapes(config.model_copy(update={"mhc": None}), source)


def check_stored(
    family: Family,
    config: ModelConfig,
    stored: Mapping[str, Stored],
    file_of: Callable[[str], str],
) -> None:
    """Compares a configuration with the shapes that the heads of the files tell.

    Raises:
        CheckpointError: as `from_transformers`, before anything is read or made room for.
    """
    tensors = {key: torch.empty(found.shape, device="meta") for key, found in stored.items()}
    from_transformers(family, config, tensors, file_of)


def from_transformers(
    family: Family,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    file_of: Callable[[str], str] = lambda key: "the state dict",
) -> dict[str, Tensor]:
    """Their state dict as ours, without streams.

    Args:
        family: whose keys they are.
        config: from `family.model_config`.
        tensors: by their keys; a tied head may be there if it equals the embedding.
        file_of: key -> the file that has it or should, for errors.

    Returns:
        Our keys; tensors are views where the layout allows it.

    Raises:
        CheckpointError: naming file and key, if one is missing, unexpected or of a wrong shape.
    """
    tensors = usual_keys(family, config, tensors, file_of)
    shapes = plain_shapes(config, file_of(family.rules[0].theirs))
    state: dict[str, Tensor] = {}
    for rule in family.rules_of(config):
        if rule.theirs not in tensors:
            raise CheckpointError(
                f"{file_of(rule.theirs)} lacks the tensor {rule.theirs!r}, which a {family.name} "
                f"of {config.n_layers} layers has"
            )
        tensor, expected = tensors[rule.theirs], _their_shape(rule, shapes, config)
        if tensor.shape != expected:
            raise CheckpointError(
                f"{file_of(rule.theirs)}: {rule.theirs!r} has shape {tuple(tensor.shape)}, "
                f"config.json makes it {tuple(expected)}"
            )
        state |= zip(rule.ours, rule.layout.split(tensor, config), strict=True)
    return state


def to_transformers(
    family: Family, config: ModelConfig, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our state dict as theirs; what belongs to the streams is left out."""
    return {
        rule.theirs: rule.layout.join(tuple(state[name] for name in rule.ours), config)
        for rule in family.rules_of(config)
    }


def _their_shape(rule: Rule, shapes: Mapping[str, torch.Size], config: ModelConfig) -> torch.Size:
    ours = tuple(torch.empty(shapes[name], device="meta") for name in rule.ours)
    return rule.layout.join(ours, config).shape


def usual_keys(
    family: Family,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    file_of: Callable[[str], str],
) -> dict[str, Tensor]:
    """The tensors of the rules under the rules' keys, some of which may be missing.

    Raises:
        CheckpointError: if there are others, or a tied head differs from the embedding.
    """
    kept = {k: v for k, v in tensors.items() if not k.endswith(family.ignored)}
    _check_layers(family, config, kept, file_of)
    known = {rule.theirs for rule in family.rules_of(config)}
    if not any(key.startswith(family.prefix) for key in kept):
        kept = {k if k in known else family.prefix + k: v for k, v in kept.items()}
    embedding = family.rules_of(config)[0].theirs
    if config.tied and family.head in kept:
        if embedding in kept and not _same(kept[family.head], kept[embedding]):
            raise CheckpointError(
                f"{file_of(family.head)}: {family.head!r} differs from {embedding!r}, but "
                f"config.json ties them (tie_word_embeddings)"
            )
        del kept[family.head]
    unexpected = sorted(set(kept) - known)
    if unexpected:
        raise CheckpointError(
            f"{file_of(unexpected[0])} has the tensor {unexpected[0]!r}, which a {family.name} of "
            f"{config.n_layers} layers does not have"
        )
    return kept


def _check_layers(
    family: Family, config: ModelConfig, keys: Iterable[str], file_of: Callable[[str], str]
) -> None:
    """Refuses more layers than there are tensors of, before anything is done for each of them."""
    [first, *_] = [rule.theirs for rule in family.rules if "{i}" in rule.theirs]
    inside, after = first.removeprefix(family.prefix).split("{i}")
    pattern = re.compile(f"(?:{re.escape(family.prefix)})?{re.escape(inside)}(\\d{{1,9}})\\.")
    there = {int(found[1]) for key in keys if (found := pattern.match(key))}
    missing = next(i for i in range(len(there) + 1) if i not in there)
    if missing < config.n_layers:
        key = f"{family.prefix}{inside}{missing}{after}"
        raise CheckpointError(
            f"{file_of(key)} lacks the tensor {key!r}, which a {family.name} of {config.n_layers} "
            f"layers has"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, as far as they hold anything."""
    return one.shape == other.shape if one.is_meta else torch.equal(one, other)
