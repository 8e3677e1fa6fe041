"""The decoder in vLLM: everything is `mhc_model`'s but where keys and values are.

vLLM hands over the tokens of all requests in one row. To the decoder they are as many sequences of
one token, each with its position and the gates of its request; vLLM's attention knows which belong
together.

Axes: t token (of all requests), c channel, h head, d head dim, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.model_executor.layers.attention import Attention as PagedAttention
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from mhc_model.checkpoint import PREFIX, cast_matrices
from mhc_model.config import ModelConfig
from mhc_model.decoder import Attend, Attention, Decoder, quiet_about_mixing
from mhc_model.errors import CheckpointError, ConfigError, EngineError


class VLLMAttention(Attention):
    """Attention whose keys and values vLLM holds, in pages.

    Without `Attend.paged` it is the decoder's own: whole forward passes over a prompt, for routing
    and embeddings, go through the same weights beside vLLM's.
    """

    def __init__(
        self, config: ModelConfig, layer: int, cache_config: CacheConfig | None, prefix: str
    ) -> None:
        super().__init__(config, layer)
        self.width = paged_head_dim(config.head_dim)
        self.pages = PagedAttention(
            config.n_heads,
            self.width,
            config.head_dim**-0.5,
            num_kv_heads=config.kv_heads,
            cache_config=cache_config,
            prefix=prefix,
        )

    def look(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if not attend.paged:
            return super().look(q, k, v, attend)
        # (t, h, 1, d) -> (t, h * width)
        q, k, v = (self._widen(each).flatten(1) for each in (q, k, v))
        y = self.pages(q, k, v).unflatten(-1, (self.config.n_heads, 1, self.width))
        return y[..., : self.config.head_dim]

    def _widen(self, x: Tensor) -> Tensor:
        missing = self.width - self.config.head_dim
        return F.pad(x, (0, missing)) if missing else x


def paged_head_dim(head_dim: int) -> int:
    """The head dim that vLLM's attention has for heads of this one; zeros fill the difference.

    Raises:
        ConfigError: if heads are larger than any that it has.
    """
    if not current_platform.is_cpu():
        return head_dim  # the backend is chosen later, and says itself what it does not have
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    for size in sorted(sizes):
        if size >= head_dim:
            return size
    raise ConfigError(f"head dim {head_dim} is above {max(sizes)}, the largest that vLLM has")


@support_torch_compile(dynamic_arg_dims={"tokens": 0, "positions": 0, "gates": 0})
class PagedDecoder(nn.Module):
    """What vLLM compiles: from tokens to the output of the last layer."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config.to_model_config()
        with quiet_about_mixing():
            self.decoder = Decoder(config, seed=None)
        for index, layer in enumerate(self.decoder.layers):
            layer.attention = VLLMAttention(
                config, index, vllm_config.cache_config, f"{prefix}.layers.{index}.attention"
            )
        # Built in vLLM's default dtype, with the float32 of connections and gates lost.
        for name, parameter in self.decoder.named_parameters():
            if "connection." in name or name == "gate_logits":
                parameter.data = parameter.data.float()
        cast_matrices(self.decoder, vllm_config.model_config.dtype)

    def forward(self, tokens: Tensor, positions: Tensor, gates: Tensor | None) -> Tensor:
        """tokens (t,), positions (t,) and gates (t, 2L), None for a model without -> (t, c)."""
        positions = positions[:, None]
        attend = Attend(*self.decoder.turns(positions), paged=True)
        return self.decoder.through_layers(tokens[:, None], positions, gates, attend)[:, 0]


class MHCGatesForVLLM(nn.Module):
    """vLLM's interface of a model, around `PagedDecoder`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.model = PagedDecoder(vllm_config=vllm_config, prefix=f"{prefix}model")
        self.decoder = self.model.decoder

    @staticmethod
    def get_model_state_cls() -> type:
        """Asked for by the runner V2."""
        from mhc_model.vllm_plugin.model_state import GateModelState

        return GateModelState

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.decoder.embedding(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        gates: Tensor | None = None,
    ) -> Tensor:
        """The output of the last layer, (t, c).

        Args:
            input_ids: (t,).
            positions: (t,).
            intermediate_tensors: must be None.
            inputs_embeds: must be None.
            gates: (t or more, 2L), a row for each token; None for a model that takes none.

        Raises:
            EngineError: without gates for an mHC model, or with embeddings.
        """
        if input_ids is None or inputs_embeds is not None:
            raise EngineError("this model takes token ids, not embeddings")
        if self.decoder.config.gateless is not None:
            return self.model(input_ids, positions, None)
        if gates is None:
            raise EngineError(
                "vLLM's model runner gave no gates; leave worker_cls out, so that the plugin's "
                "own runs"
            )
        return self.model(input_ids, positions, gates[: len(input_ids)])

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.decoder.logits(hidden_states)

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Copies the tensors of our model.safetensors, whose names are the decoder's, or those of
        what transformers saved.

        Raises:
            CheckpointError: for an unknown name, a wrong shape, or a tensor that is missing.
        """
        expected = dict(self.decoder.named_parameters())
        loaded: set[str] = set()
        for stored, value in weights:
            name = stored.removeprefix(PREFIX)  # transformers' own
            if name not in expected:
                raise CheckpointError(f"the checkpoint has the unknown tensor {name!r}")
            if value.shape != expected[name].shape:
                raise CheckpointError(
                    f"{name!r} has shape {tuple(value.shape)}, the configuration needs "
                    f"{tuple(expected[name].shape)}"
                )
            expected[name].copy_(value)
            loaded.add(name)
        missing = sorted(expected.keys() - loaded)
        if missing:
            raise CheckpointError(f"the checkpoint lacks the tensor {missing[0]!r}")
        return {name for name, _ in self.named_parameters()}
