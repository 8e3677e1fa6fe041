"""Configuration of a model and of a gate policy, saved beside their weights. Needs no torch.

With them stand the words and limits that settings and requests share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mhc_model.mhc_config import PRESET_ALIASES as PRESET_ALIASES
from mhc_model.mhc_config import PRESETS as PRESETS
from mhc_model.mhc_config import MHCConfig as MHCConfig
from mhc_model.settings import Settings

EngineKind = Literal["torch", "vllm"]
MAX_SAMPLES = 128  # of one request
MAX_TOP_LOGPROBS = 20


Unit = Annotated[float, Field(ge=0.0, le=1.0)]
GateRange = tuple[Unit, Unit] | tuple[tuple[Unit, Unit], ...]
"""Lowest and highest gate: one pair for all sublayers, or one for each layer or sublayer."""

BEHAVIOUR_NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
RESERVED_NAMES = ("learned", "policy", "prompt", "answer")

AnswerStyle = Literal["direct", "brief", "worked"]
"""How much an answer says before `#### N`; `evals.problems` writes and recognises them."""


class Behaviour(Settings):
    """What a range of gates means to a model: it was trained on such rows under such gates."""

    gates: GateRange = Field(
        description="lowest and highest gate in [0, 1]: one pair, drawn once for all sublayers; or "
        "L or 2L pairs, drawn for each layer or sublayer"
    )
    at: Unit | tuple[Unit, ...] | None = Field(
        None,
        description="gates that stand for it in a request: 1, L or 2L numbers; none is the middle "
        "of the range",
    )
    share: float | None = Field(
        None, ge=0.0, le=1.0, description="share of the training rows; set by the training"
    )
    style: AnswerStyle | None = Field(
        None,
        description="style of the answers in its rows, which `evals.control` expects of it; none "
        "is the behaviour's name where that is a style, and no expectation elsewhere",
    )

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """One pair, or L or 2L."""
        match self.gates:
            case (float(low), float(high)):
                return ((low, high),)
        return self.gates

    @property
    def representative(self) -> tuple[float, ...]:
        """The gates that stand for it: 1, L or 2L numbers."""
        if self.at is None:
            return tuple((low + high) / 2 for low, high in self.ranges)
        return self.at if isinstance(self.at, tuple) else (self.at,)

    @model_validator(mode="after")
    def _check_ranges(self) -> Behaviour:
        for low, high in self.ranges:
            if low > high:
                raise ValueError(f"the range {low} to {high} has its ends in the wrong order")
        if not self.ranges:
            raise ValueError("gates have no range; give [lowest, highest]")
        return self


def check_behaviours(behaviours: Mapping[str, Behaviour], n_layers: int) -> None:
    """Checks names and lengths against a model of L layers.

    Raises:
        ValueError: naming the behaviour, what is wrong and what is allowed.
    """
    for name, behaviour in behaviours.items():
        if not re.fullmatch(BEHAVIOUR_NAME, name) or name in RESERVED_NAMES:
            raise ValueError(
                f"a behaviour is named {name!r}; a name has 1 to 64 letters, digits, '_' and '-', "
                f"a letter first, and is none of {', '.join(RESERVED_NAMES)}"
            )
        for what, count in (
            ("ranges", len(behaviour.ranges)),
            ("numbers in `at`", len(behaviour.representative)),
        ):
            if count not in (1, n_layers, 2 * n_layers):
                raise ValueError(
                    f"behaviour {name} has {count} {what}; allowed: 1 (global), {n_layers} (one "
                    f"per layer) or {2 * n_layers} (one per sublayer)"
                )


class ModelConfig(Settings):
    """A decoder, plain or with mHC: the defaults are nanochat's of October 2025, GPT-2 in size.

    The other values of its switches make it a Llama, a Qwen3 or OpenAI's GPT-2; see
    `mhc_model.conversion`.
    """

    vocab_size: int = Field(50257, ge=2, description="number of token ids, special tokens included")
    n_layers: int = Field(
        12, ge=1, description="L; each layer has an attention and an mlp sublayer"
    )
    n_heads: int = Field(6, ge=1, description="number of query heads")
    n_kv_heads: int | None = Field(
        None, ge=1, description="number of key and value heads; none means n_heads"
    )
    d_model: int = Field(768, ge=2, description="c, the width of a stream")
    d_head: int | None = Field(
        None, ge=2, description="width of an attention head; none is d_model / n_heads"
    )
    mlp: Literal["relu2", "swiglu", "gelu"] = Field(
        "relu2",
        description="between the matrices of the mlp: relu squared, SiLU of a third matrix, or "
        "GELU in GPT-2's form (tanh)",
    )
    mlp_ratio: int = Field(4, ge=1, description="hidden width of the mlp over d_model")
    d_mlp: int | None = Field(
        None, ge=1, description="hidden width of the mlp; none is mlp_ratio * d_model"
    )
    norm: Literal["rms", "rms_weight", "layer"] = Field(
        "rms",
        description="before every sublayer and at the end: RMSNorm without or with a weight, or "
        "LayerNorm with weight and bias",
    )
    norm_eps: float = Field(1e-6, gt=0.0, description="epsilon of every norm")
    embedding_norm: bool = Field(
        True, description="RMSNorm without weight right after the token embedding"
    )
    qk_norm: Literal["none", "rms", "rms_weight"] = Field(
        "rms",
        description="RMSNorm of each head's queries and keys: after the rotation without a "
        "weight, before it with one",
    )
    biases: bool = Field(False, description="the matrices of attention and mlp have biases")
    positions: Literal["rope", "learned"] = Field(
        "rope", description="rotary, or embeddings that are added to the tokens'"
    )
    max_seq_len: int = Field(
        1024,
        ge=1,
        le=2**24,  # where float32 no longer tells positions apart
        description="longest sequence, prompt and completion",
    )
    rope_base: float = Field(10000.0, gt=0.0, description="base of the rotary embedding")
    tied: bool = Field(False, description="the output head is the token embedding")
    softcap: float | None = Field(
        15.0,
        gt=0.0,
        description="logits become softcap * tanh(logits / softcap); none turns it off",
    )
    mhc: MHCConfig | None = Field(
        None, description="hyper-connections; none is the plain residual model"
    )
    behaviours: dict[str, Behaviour] = Field(
        {}, description="by name, what ranges of gates mean; training writes them"
    )

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; "
                f"give each head a whole number of channels, or set d_head"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(
                f"head dim d_head or d_model / n_heads = {self.head_dim} is odd; rotary "
                f"embedding needs pairs"
            )
        if self.behaviours and self.gateless is not None:
            raise ValueError(
                f"behaviours are {', '.join(self.behaviours)}, but the model is {self.gateless}: "
                f"it has no gates to tell them apart"
            )
        check_behaviours(self.behaviours, self.n_layers)
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.kv_heads}"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def mlp_width(self) -> int:
        return self.mlp_ratio * self.d_model if self.d_mlp is None else self.d_mlp

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def gateless(self) -> str | None:
        """Of a model that takes no gates, what it is instead, for errors; None for the others."""
        if self.mhc is None:
            return "plain (mhc: null)"
        if not self.mhc.mixes and self.mhc.gates == "refuse":
            return "without mixing (mhc.projection: identity; mhc.gates: accept would take gates)"
        return None

    @property
    def n_gates(self) -> int:
        """2L, the number of gates; 0 for a model that takes none."""
        return 0 if self.gateless is not None else 2 * self.n_layers


ActionSpace = Literal["global", "per_layer", "per_sublayer", "prompt_and_answer"]
Observation = Literal["mean_prompt_embedding", "mean_hidden_state"]
HiddenWidths = tuple[Annotated[int, Field(ge=1)], ...]


def check_observation(observation: Observation, layer: int | None) -> None:
    """Refuses a layer where none is read, and none where one is.

    Raises:
        ValueError: naming both.
    """
    if (layer is not None) != (observation == "mean_hidden_state"):
        raise ValueError(
            f"observation_layer is {layer} with the observation {observation}; "
            f"mean_hidden_state needs a layer from 1 to L, the others take none"
        )


class PolicyConfig(Settings):
    """What a policy observes and sets; saved as policy.json."""

    format: Literal[1] = Field(1, description="version of the policy directory")
    action_space: ActionSpace = Field(description="one gate, one a layer, or one a sublayer")
    n_layers: int = Field(ge=1, le=2**16, description="L, layers of the model that is steered")
    observation: Observation = Field(
        "mean_prompt_embedding",
        description="mean over the prompt of its token embeddings, or of the hidden state after "
        "observation_layer under the learned gates",
    )
    observation_layer: int | None = Field(
        None, ge=1, description="1 to L, the layer of mean_hidden_state; none otherwise"
    )
    observation_dim: int = Field(ge=1, description="c, width of the model")
    hidden: HiddenWidths = Field((64, 64), description="widths of the hidden layers")
    checkpoint_hash: str | None = Field(
        None, description="content hash of the checkpoint that it was trained on"
    )

    @model_validator(mode="after")
    def _check_layer(self) -> PolicyConfig:
        check_observation(self.observation, self.observation_layer)
        if self.observation_layer is not None and self.observation_layer > self.n_layers:
            raise ValueError(
                f"observation_layer {self.observation_layer} exceeds n_layers {self.n_layers}"
            )
        return self

    @property
    def n_actions(self) -> int:
        """A: 1, L or 2L; 2 for one gate while the prompt is read and one for the answer."""
        return {
            "global": 1,
            "per_layer": self.n_layers,
            "per_sublayer": 2 * self.n_layers,
            "prompt_and_answer": 2,
        }[self.action_space]
