"""Configuration of `python -m rl.steerable`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from mhc_model.config import ActionSpace
from mhc_model.settings import Settings
from rl.ablate import AblateConfig

KINDS = ("red", "blue")

Bits = tuple[int, ...]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # of a directory


class ModelSettings(Settings):
    """The model that obeys its gates, and its training."""

    n_layers: int = Field(3, ge=2, description="L")
    d_model: int = Field(64, ge=8, multiple_of=8, description="width of a stream")
    vocab_size: int = Field(340, ge=257, description="token ids, at most")
    learned_gate: float = Field(0.2, gt=0.0, lt=1.0, description="learned gate of every sublayer")
    keys: tuple[int, ...] = Field(
        (0, 1, 2),
        min_length=1,
        max_length=3,
        description="gates that spell the digit, the highest bit first; numbered as in a gate "
        "vector: layer 0 attention, layer 0 mlp, layer 1 attention, ...",
    )
    margin: float = Field(
        0.1, ge=0.0, lt=0.5, description="key gates are trained at least so far from 1/2"
    )
    steps: int = Field(600, ge=1, description="of training")
    batch: int = Field(64, ge=1, description="problems of a step")
    lr: float = Field(0.005, gt=0.0, description="learning rate (AdamW)")
    mhc_lr: float = Field(0.01, gt=0.0, description="learning rate of the hyper-connections")

    @model_validator(mode="after")
    def _check_keys(self) -> ModelSettings:
        # The last sublayer's mixing cannot show: the output is the mean of the streams.
        limit = 2 * self.n_layers - 1
        if len(set(self.keys)) != len(self.keys) or not all(0 <= k < limit for k in self.keys):
            raise ValueError(
                f"keys are {self.keys}: they must be different numbers of 0 to {limit - 1}"
            )
        return self


class Variant(Settings):
    """What the grader wants, and who tries to give it."""

    red: tuple[int, ...] = Field(description="wanted bits of red things, one a key gate")
    blue: tuple[int, ...] = Field(description="wanted bits of blue things")
    spaces: tuple[ActionSpace, ...] = Field(
        min_length=1, description="action spaces that PPO tries; each must be able to express it"
    )

    @property
    def wanted(self) -> dict[str, tuple[int, ...]]:
        """Kind -> bits."""
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def is_contextual(self) -> bool:
        """Whether right gates depend on the problem."""
        return len(set(self.wanted.values())) > 1


class SteerableConfig(Settings):
    """The proof: one model, and an ablation for every variant of the task."""

    name: Name = Field("steerable", description="name of the directory; the same name resumes")
    storage: str = Field("runs", description="directory of the runs")
    seed: int = Field(0, ge=0, description="of model and problems")
    test_problems: int = Field(600, ge=20, le=2400, description="held-out problems")
    model: ModelSettings = Field(ModelSettings(), description="the model")
    variants: dict[Name, Variant] = Field(
        {},  # --help needs a value to begin with; this one is refused
        min_length=1,
        validate_default=True,
        description="name -> what is wanted; in a YAML file",
    )
    ablation: AblateConfig = Field(
        description="what is done for each variant; name, storage, checkpoint, data, known gates "
        "and PPO's arms are filled in"
    )
    recovered: float = Field(
        0.9, gt=0.0, le=1.0, description="share of the oracle's gain that PPO must reach"
    )
    p_value: float = Field(
        0.01, gt=0.0, lt=1.0, description="McNemar's against the learned gates must be below"
    )

    @model_validator(mode="after")
    def _check_variants(self) -> SteerableConfig:
        count = len(self.model.keys)
        for name, variant in self.variants.items():
            for kind, bits in variant.wanted.items():
                if len(bits) != count or not set(bits) <= {0, 1}:
                    raise ValueError(
                        f"variants.{name}.{kind} is {bits}; it must be {count} bits, one for each "
                        f"of model.keys {self.model.keys}"
                    )
            for space in variant.spaces:
                if not expressible(space, variant.wanted, self.model.keys):
                    raise ValueError(
                        f"variants.{name}.spaces has {space}, whose actions cannot give the gates "
                        f"{self.model.keys} the bits {variant.wanted}"
                    )
        return self


def expressible(space: str, wanted: Mapping[str, Bits], keys: Sequence[int]) -> bool:
    """Whether actions of this space can give every kind of problem its right gates."""
    # One gate a phase gives all sublayers the same, as a global one does.
    width = {"global": None, "prompt_and_answer": None, "per_layer": 2, "per_sublayer": 1}[space]
    for bits in wanted.values():
        groups: dict[int, set[int]] = {}
        for key, bit in zip(keys, bits, strict=True):
            groups.setdefault(0 if width is None else key // width, set()).add(bit)
        if any(len(group) > 1 for group in groups.values()):
            return False
    return True
