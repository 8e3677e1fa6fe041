"""Configuration of the hyper-connections, and their presets. Needs no torch."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from mhc_model.settings import Settings

Projection = Literal["limit", "iterations", "permutations", "kronecker", "identity", "free"]


class MHCConfig(Settings):
    """Manifold-constrained hyper-connections (arXiv:2512.24880): streams, mixing, gates.

    The defaults are the preset `default`: H_res starts near the identity, H_pre is one-hot-like and
    rotates over the sublayers, H_post is 1 and the projections are zero. With
    `stream_embedding_std=0` the model at init equals the plain model with the same weights.

    `preset: NAME` among the values takes the rest from `PRESETS`; values given beside it win.
    """

    n_streams: int = Field(4, ge=2, le=8, description="n, the number of residual streams")
    projection: Projection = Field(
        "limit",
        description="how logits become H_res: 'limit' is the exact limit of Sinkhorn-Knopp, "
        "'iterations' is sinkhorn_iters of its iterations, 'permutations' is a softmax over the "
        "n! permutation matrices (mHC-lite; at most 5 streams); 'kronecker' is a Kronecker product "
        "of 2 x 2 matrices with one logit each (KromHC; a power of two); 'identity' is H_res = I, "
        "with no logits and no projection: a control, whose streams do not mix; 'free' constrains "
        "nothing (HC): H_pre, H_post and H_res are biases plus strength times tanh",
    )
    gates: Literal["refuse", "accept"] = Field(
        "refuse",
        description="of the projection 'identity', where gates do nothing: requests with gates are "
        "errors, as on a plain model, or they are taken and change nothing ('accept')",
    )
    dynamic: bool = Field(
        True,
        description="H_pre, H_post and H_res depend on the token; false: on the biases alone "
        "(static mHC), with no projections phi and no strengths",
    )
    single_pass: bool = Field(
        False,
        description="a sublayer reads with the H_pre made at the one before (DeepSeek-V4.1); the "
        "first one reads stream 0",
    )
    collapse: Literal["mean", "learned"] = Field(
        "mean",
        description="how the streams become one after the last layer: their mean, or a sum with "
        "weights of the token, sigmoid(s x~ phi + b), at init 1 / n; with single_pass: the H_pre "
        "made at the last sublayer",
    )
    sinkhorn_iters: int = Field(
        20,
        ge=1,
        le=1000,
        description="Sinkhorn-Knopp iterations of the projection 'iterations', each scaling rows, "
        "then columns; the others do not use it",
    )
    tau: float = Field(1.0, gt=0.0, description="temperature of the logits of H_res")
    res_diagonal: float = Field(
        2.0,
        description="initial diagonal of b_res (for 'permutations': logit of the identity, for "
        "'kronecker' less res_off_diagonal: logit of each factor); 2 gives H_res a diagonal of "
        "0.71, 4 one of 0.95; 'free' starts at I",
    )
    res_off_diagonal: float = Field(0.0, description="initial other entries of b_res")
    pre_own: float = Field(2.0, description="initial b_pre of the stream that a sublayer prefers")
    pre_others: float = Field(-2.0, description="initial b_pre of the other streams")
    pre_rotates: bool = Field(
        True,
        description="the preferred stream is the sublayer's index modulo n; false: always stream 0",
    )
    scale_init: float | None = Field(
        None,
        gt=0.0,
        description="initial s_pre, s_post, s_res: how strongly tokens steer mixing; none is "
        "min(1, 256 / (n_streams * d_model)), with which a step of AdamW moves the coefficients "
        "by as much at any width (0.025 at the paper's)",
    )
    projection_std: float = Field(
        0.0, ge=0.0, description="standard deviation of the initial projections (phi); 0 = zeros"
    )
    stream_embedding_std: float = Field(
        0.02, ge=0.0, description="standard deviation of the learned stream embeddings at init"
    )
    gate_init: float = Field(
        0.9,
        gt=0.0,
        lt=1.0,
        description="initial value of the learned gates g (stored as logits, hence not 0 or 1)",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "preset" not in values:
            return values
        values = dict(values)
        name = values.pop("preset")
        name = PRESET_ALIASES.get(name, name) if isinstance(name, str) else name
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset is {name!r}; allowed: {', '.join(PRESETS)}")
        preset = dict(PRESETS[name])
        if name == "uniform":  # sigmoid(-log(n - 1)) = 1 / n
            try:
                logit = -math.log(int(values.get("n_streams", 4)) - 1)
            except (TypeError, ValueError, OverflowError):
                logit = 0.0  # no such number of streams; its own check says so
            preset |= {"pre_own": logit, "pre_others": logit}
        return {**preset, **values}

    @model_validator(mode="after")
    def _check_switches(self) -> MHCConfig:
        if self.gates == "accept" and self.projection != "identity":
            raise ValueError(
                f"gates is 'accept' with the projection {self.projection!r}, where gates count "
                f"anyway; leave it out: it is for the projection 'identity'"
            )
        if self.single_pass and not self.dynamic:
            raise ValueError(
                "single_pass is true, but dynamic is false: static coefficients do not depend on "
                "the streams, so it is all the same where they are made; leave it out"
            )
        for field, value in (
            ("projection_std", self.projection_std or None),
            ("scale_init", self.scale_init),
        ):
            if not self.dynamic and value is not None:
                raise ValueError(
                    f"{field} is {value}, but dynamic is false: static mHC has no projections and "
                    f"no strengths; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _check_streams(self) -> MHCConfig:
        if self.projection == "kronecker" and self.n_streams not in (2, 4, 8):
            raise ValueError(
                f"n_streams is {self.n_streams}; the projection 'kronecker' is a product of 2 x 2 "
                f"matrices and allows 2, 4 or 8"
            )
        if self.projection == "permutations" and self.n_streams > 5:
            raise ValueError(
                f"n_streams is {self.n_streams}, which has {math.factorial(self.n_streams):,} "
                f"permutations; the projection 'permutations' allows at most 5 streams"
            )
        return self

    def initial_scale(self, d_model: int) -> float:
        """Start of s_pre, s_post and s_res for streams of that width."""
        if self.scale_init is not None:
            return self.scale_init
        return min(1.0, 256.0 / (self.n_streams * d_model))

    @property
    def n_res_logits(self) -> int:
        """Logits of H_res per token: n * n, n! for permutations, log2 n for factors, 0 for I."""
        n = self.n_streams
        factors = n.bit_length() - 1
        few = {"permutations": math.factorial(n), "kronecker": factors, "identity": 0}
        return few.get(self.projection, n * n)

    @property
    def mixes(self) -> bool:
        """Whether H_res can be anything but I, so that gates count."""
        return self.projection != "identity"

    @property
    def constrained(self) -> bool:
        """Whether H_res is doubly stochastic, H_pre in [0, 1] and H_post in [0, 2]."""
        return self.projection != "free"


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Published values of a dynamic mHC, for reproduction. exp(-160) is zero in float32: H_res is
    # the identity to the last bit and no gradient reaches it.
    "published": {
        "projection": "iterations",
        "sinkhorn_iters": 20,
        "tau": 0.05,
        "res_diagonal": 0.0,
        "res_off_diagonal": -8.0,
        "pre_own": 0.0,
        "pre_others": -8.0,
        "pre_rotates": False,
        "scale_init": 1.0,
        "projection_std": 0.01,
        "gate_init": 1.0 / (1.0 + math.exp(-1.0)),
    },
    # H_pre = 1/n, H_post = 1, zero projections and equal streams: the plain model exactly, and a
    # symmetry that gradient descent never leaves.
    "uniform": {"res_diagonal": 4.0, "stream_embedding_std": 0.0},
    "lite": {"projection": "permutations", "res_diagonal": 4.0},
}
PRESET_ALIASES = {"plan": "published"}
"""Earlier names of presets, which configurations may still use."""
