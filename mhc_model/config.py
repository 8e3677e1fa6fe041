"""Configuration of the model: what is fixed at training time and saved in config.json."""

from __future__ import annotations

from pydantic import Field, model_validator

from mhc_model.settings import Settings


class MHCConfig(Settings):
    """Manifold-constrained hyper-connections (arXiv:2512.24880): streams, mixing, gates.

    The defaults are the `default` preset: H_res starts near the identity, H_pre is one-hot-like and
    rotates over the sublayers, H_post is 1 and the projections are zero. With
    `stream_embedding_std=0` the model at init equals the plain model with the same weights.
    """

    n_streams: int = Field(4, ge=2, le=8, description="n, the number of residual streams")
    sinkhorn_iters: int = Field(
        20, ge=1, le=1000, description="Sinkhorn-Knopp iterations; each scales rows, then columns"
    )
    tau: float = Field(1.0, gt=0.0, description="temperature of the Sinkhorn logits")
    res_diagonal: float = Field(
        4.0, description="initial diagonal of b_res; 4 gives H_res a diagonal of about 0.95"
    )
    pre_contrast: float = Field(
        1.0,
        description="b_pre starts at +contrast on the sublayer's own stream (sublayer index mod n) "
        "and -contrast on the others; 0 makes H_pre uniform",
    )
    scale_init: float = Field(
        0.01, gt=0.0, description="initial s_pre, s_post, s_res: how strongly tokens steer mixing"
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


class ModelConfig(Settings):
    """A GPT-2-like decoder of nanochat's October 2025 architecture, plain or with mHC."""

    vocab_size: int = Field(50257, ge=2, description="number of token ids, special tokens included")
    n_layers: int = Field(
        12, ge=1, description="L; each layer has an attention and an mlp sublayer"
    )
    n_heads: int = Field(6, ge=1, description="number of query heads")
    n_kv_heads: int | None = Field(
        None, ge=1, description="number of key and value heads; none means n_heads"
    )
    d_model: int = Field(768, ge=2, description="c, the width of a stream; head dim is c / n_heads")
    mlp_ratio: int = Field(4, ge=1, description="hidden width of the mlp over d_model")
    max_seq_len: int = Field(1024, ge=1, description="longest sequence, prompt and completion")
    rope_base: float = Field(10000.0, gt=0.0, description="base of the rotary embedding")
    norm_eps: float = Field(1e-6, gt=0.0, description="epsilon of every RMSNorm")
    softcap: float | None = Field(
        15.0,
        gt=0.0,
        description="logits become softcap * tanh(logits / softcap); none turns it off",
    )
    mhc: MHCConfig | None = Field(
        None, description="hyper-connections; none is the plain residual model"
    )

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; "
                f"give each head a whole number of channels"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head dim d_model / n_heads = {self.head_dim} is odd; rotary embedding needs pairs"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.kv_heads}"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def n_gates(self) -> int:
        """2L, the number of gates of an mHC model; a plain model has none."""
        return 0 if self.mhc is None else 2 * self.n_layers
