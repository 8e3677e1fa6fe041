"""The decoder: plain or with mHC streams, of nanochat's architecture unless configured otherwise.

- nanochat's of October 2025: rotary positions, RMSNorm on queries and keys, RMSNorm without weight
  also right after the token embedding, relu squared, no biases, untied head, logits soft-capped
- the switches of `ModelConfig` make it a Llama, a Qwen3 or OpenAI's GPT-2
- with `config.mhc`: n residual streams and per-token mixing around every sublayer, steered by
  gates that are an argument of the forward pass, one row per sequence

Axes: b batch, t token, n streams, c channel, v vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mhc_model.config import MHCConfig, ModelConfig
from mhc_model.decoder.cache import KVCache
from mhc_model.decoder.crossing import cross, start
from mhc_model.decoder.gated import Gated
from mhc_model.decoder.layers import Attend, Layer, Norm, rms_norm, rope_table
from mhc_model.decoder.size import count_parameters, estimate_flops
from mhc_model.errors import EngineError, GateError
from mhc_model.streams import Coefficients, HyperConnection, StreamHead

T = TypeVar("T")


Watch = Callable[[int, Tensor, Coefficients, Tensor], None]
"""Called at every sublayer with its index, the streams before it (b, t, n, c), its coefficients and
its gates: (b,), or (b, t) where tokens have their own."""


@contextmanager
def quiet_about_mixing() -> Iterator[None]:
    """For callers that load an existing model, where it is no news that its mixing is stuck."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="H_res starts as the identity")
        yield


class Decoder(Gated):
    """Token ids in, logits out. See the module's docstring for the architecture.

    Attributes:
        watch: None, or a function that sees the streams and coefficients of every forward pass
            (`mhc_model.routing` sets it for a while).
        gradient_checkpointing: keep only what passes between layers for the backward pass, and
            compute the rest again there.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        """Builds the model.

        Args:
            config: sizes and architecture.
            seed: initialises the weights, independently of global state; None leaves all but the
                hyper-connections as they come, for weights that are loaded next.
        """
        super().__init__(config)
        self.watch: Watch | None = None
        self.gradient_checkpointing = False
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_seq_len, config.d_model)
        layers = nn.ModuleList(Layer(config, i) for i in range(config.n_layers))
        self.layers = cast("Sequence[Layer]", layers)  # a ModuleList does not tell its type
        self.final_norm = Norm(config.norm, config.d_model, config.norm_eps)
        self.head: nn.Linear | None = None
        self.collapse_connection: StreamHead | None = None
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.mhc is not None:
            self.stream_embedding = nn.Parameter(torch.empty(config.mhc.n_streams, config.d_model))
            # In the single-pass form the last sublayer's H_pre does this work.
            if config.mhc.collapse == "learned" and not config.mhc.single_pass:
                self.collapse_connection = StreamHead(config.mhc, config.d_model, config.norm_eps)
        if config.mhc is not None and config.mhc.mixes:
            self.gate_logits = nn.Parameter(torch.empty(config.n_gates))
            if seed is not None:
                self._warn_if_mixing_is_stuck(config.mhc)
        if config.positions == "rope":
            cos, sin = rope_table(config)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)
        if seed is not None:
            self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fills every parameter.

        embedding            N(0, 1); N(0, 0.02) where it is the head too
        head                 N(0, 0.001): the first prediction is all but uniform
        position_embedding   N(0, 0.02)
        o_proj, down_proj    N(0, s / sqrt(2 L)), as GPT-2's
        other matrices       N(0, s), s = min(1, sqrt(fan_out / fan_in)) / sqrt(fan_in)
        biases, norms        0, 1 (the weights of norms)
        hyper-connections    `HyperConnection.reset_parameters`, `StreamHead.reset_parameters`
        stream_embedding     N(0, mhc.stream_embedding_std)
        gate_logits          logit(mhc.gate_init)
        """
        # One generator drawn in this order: a plain and an mHC model of one seed share their
        # embedding and matrices.
        generator = torch.Generator().manual_seed(seed)
        self.embedding.weight.normal_(0.0, 0.02 if self.config.tied else 1.0, generator=generator)
        if self.head is not None:
            # Not zeros: with them no gradient would reach the hyper-connections for three steps.
            self.head.weight.normal_(0.0, 0.001, generator=generator)
        if self.config.positions == "learned":
            self.position_embedding.weight.normal_(0.0, 0.02, generator=generator)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1 and name.endswith((".bias", "norm.weight")):
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
        for layer in self.layers:
            attention, mlp = layer.attention, layer.mlp
            inputs = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.up_proj]
            inputs += [mlp.gate_proj] if self.config.mlp == "swiglu" else []
            for linear in (*inputs, attention.o_proj, mlp.down_proj):
                fan_out, fan_in = linear.weight.shape
                std = min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
                std *= 1.0 if linear in inputs else (2 * self.config.n_layers) ** -0.5
                linear.weight.normal_(0.0, std, generator=generator)
        if self.config.mhc is not None:
            for module in self.stream_modules():
                module.reset_parameters(generator)
            std = self.config.mhc.stream_embedding_std
            self.stream_embedding.normal_(0.0, std, generator=generator)
            if self.config.mhc.mixes:
                self.gate_logits.fill_(torch.logit(torch.tensor(self.config.mhc.gate_init)).item())

    def _warn_if_mixing_is_stuck(self, mhc: MHCConfig) -> None:
        start = self.connections()[0].initial_res()
        if mhc.constrained and (start - torch.eye(mhc.n_streams)).abs().max() < 1e-12:
            warnings.warn(
                f"H_res starts as the identity (tau {mhc.tau}, b_res {mhc.res_diagonal} on the "
                f"diagonal and {mhc.res_off_diagonal} beside it): no gradient reaches it and it "
                f"cannot learn; the preset 'default' can",
                stacklevel=3,
            )

    def connections(self) -> list[HyperConnection]:
        """The 2L hyper-connections in gate order; empty for a plain model."""
        if self.config.mhc is None:
            return []
        return [
            connection
            for layer in self.layers
            for connection in (layer.attention_connection, layer.mlp_connection)
        ]

    def stream_modules(self) -> list[HyperConnection | StreamHead]:
        """`connections`, and the learned collapse where there is one."""
        head = self.collapse_connection
        return [*self.connections(), *([] if head is None else [head])]

    def forward(
        self, tokens: Tensor, gates: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            tokens: (b, t) int64 token ids.
            gates: (b, 2L) in [0, 1], one row per sequence; (b, t, 2L), one per token; or None for
                the learned gates. The range is the caller's to check (`expand_gates`): a check
                here would wait for the device at every step.
            cache: keys and values so far; the tokens continue its rows.

        Returns:
            (b, t, v) float32.

        Raises:
            GateError: if the shape of gates is wrong, or a model that takes none is given gates.
            EngineError: if the sequence is longer than the context or the cache, or the cache has
                another number of rows.
        """
        return self.logits(self.hidden(tokens, gates, cache))

    def hidden(
        self, tokens: Tensor, gates: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """The normalised output of the last layer, (b, t, c); arguments as in `forward`."""
        b, t = tokens.shape
        gates = self.checked_gates(gates, b, t)
        attend = self._attend(tokens, cache)
        x = self.through_layers(tokens, self._positions(tokens, cache), gates, attend)
        if cache is not None:
            cache.lengths += t
        return x

    def through_layers(
        self, tokens: Tensor, positions: Tensor, gates: Tensor | None, attend: Attend
    ) -> Tensor:
        """What `hidden` computes, for callers that arrange the attention. Nothing is checked.

        Args:
            tokens: (b, t) int64.
            positions: (b or 1, t) int64, in the context.
            gates: (b, 2L) or (b, t, 2L); None for a model that takes none.
            attend: rotations, and what the attention looks at.

        Returns:
            (b, t, c).
        """
        x = self._embed(tokens, positions)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.config.mhc is None:
            for index in range(len(self.layers)):
                x = self._run_layer(self._plain_layer, index, x, attend)
        else:
            x = self._through_streams(x, gates, attend, len(self.layers), self.watch)
        return self.final_norm(x)

    def hidden_after(self, tokens: Tensor, layers: int) -> Tensor:
        """The mean of the streams after the first layers, under the learned gates: (b, t, c).

        Args:
            tokens: (b, t) int64 token ids.
            layers: 1 to L; the others do not run.

        Raises:
            GateError: for a plain model, which has no streams.
            EngineError: if the sequence is longer than the context.
        """
        if self.config.mhc is None:
            raise GateError("this model is plain (mhc: null): it has no streams")
        gates = None
        if self.config.gateless is None:
            gates = self.learned_gates().expand(tokens.shape[0], -1)
        attend = self._attend(tokens, None)
        # Unwatched: a watcher expects whole passes, and may have been set by another thread.
        x = self._embed(tokens, self._positions(tokens, None))
        return self._through_streams(x, gates, attend, layers, None)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(b, t) -> (b, t, c)."""
        x = self.embedding(tokens)
        if self.config.positions == "learned":
            x = x + self.position_embedding(positions)
        return rms_norm(x, self.config.norm_eps) if self.config.embedding_norm else x

    def _positions(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        """(b or 1, t) int64 positions in the context."""
        if cache is None:
            return torch.arange(tokens.shape[1], device=tokens.device)[None]
        # The spare position of the cache may lie one past the context.
        return cache.positions(tokens.shape[1]).clamp(max=self.config.max_seq_len - 1)

    def _through_streams(
        self, x: Tensor, gates: Tensor | None, attend: Attend, count: int, watch: Watch | None
    ) -> Tensor:
        """(b, t, c) through the streams of the first `count` layers, gates (b, 2L) -> (b, t, c)."""
        b, t, _ = x.shape
        if gates is None:  # H_res is I, whatever they are
            gates = self._constant_gates(0.0, b)
        # Tokens are flat between the sublayers, each with the gates of its sequence.
        token_gates = gates.flatten(0, 1) if gates.ndim == 3 else gates.repeat_interleave(t, dim=0)
        first = self.layers[0].attention_connection
        x, u, coefficients = start(first, x.flatten(0, 1), self.stream_embedding, (b, t))
        for index in range(count):
            x, u, coefficients = self._run_layer(
                self._stream_layer,
                *(index, (b, t), x, u, coefficients, gates, token_gates, attend, watch),
            )
        # After the last layer u is the streams as one; before, what the next attention reads.
        hidden = u if count == len(self.layers) else x.mean(dim=1)
        return hidden.unflatten(0, (b, t))

    def _stream_layer(
        self,
        index: int,
        shape: tuple[int, int],
        x: Tensor,
        u: Tensor,
        coefficients: Coefficients,
        gates: Tensor,
        token_gates: Tensor,
        attend: Attend,
        watch: Watch | None,
    ) -> tuple[Tensor, Tensor, Coefficients]:
        """One layer: from what its attention reads to what the next layer's reads.

        Args:
            index: of the layer.
            shape: b and t; either may be zero.
            x: (b t, n, c) streams before the attention.
            u: (b t, c) what the attention reads of them.
            coefficients: of the attention's connection.
            gates: (b, 2L) or (b, t, 2L).
            token_gates: (b t, 2L).
            attend: positions and cache.
            watch: sees what every sublayer finds.

        Returns:
            The same three of the next layer. After the last one u is the streams as one.
        """
        layer, last = self.layers[index], index + 1 == len(self.layers)
        following = None if last else self.layers[index + 1].attention_connection
        for k, after in ((2 * index, layer.mlp_connection), (2 * index + 1, following)):
            if watch is not None:
                now = Coefficients(*(value.unflatten(0, shape) for value in coefficients))
                watch(k, x.unflatten(0, shape), now, gates[..., k])
            u = u.unflatten(0, shape)
            if k % 2:
                y = layer.mlp(layer.mlp_norm(u, is_rms=True)).flatten(0, 1)
            else:
                y = layer.attention(layer.attention_norm(u, is_rms=True), attend).flatten(0, 1)
            gate = token_gates[:, k]
            if after is None:
                departure = (x, y, coefficients, gate, self.collapse_connection)
                return x, layer.mlp_connection.collapse(*departure), coefficients
            x, u, coefficients = cross(after, x, y, coefficients, gate, shape)
        return x, u, coefficients

    def _plain_layer(self, index: int, x: Tensor, attend: Attend) -> Tensor:
        layer = self.layers[index]
        x = x + layer.attention(layer.attention_norm(x), attend)
        return x + layer.mlp(layer.mlp_norm(x))

    def _run_layer(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a layer; with `gradient_checkpointing` once more in the backward pass."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return function(*arguments)
        return checkpoint(function, *arguments, use_reentrant=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., c) from `hidden` -> (..., v) float32 logits, soft-capped."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        logits = F.linear(hidden, weight).float()
        if self.config.softcap is None:
            return logits
        return self.config.softcap * torch.tanh(logits / self.config.softcap)

    def _attend(self, tokens: Tensor, cache: KVCache | None) -> Attend:
        b, t = tokens.shape
        if cache is None:
            if t > self.config.max_seq_len:
                raise EngineError(
                    f"sequence of {t} tokens exceeds the context of {self.config.max_seq_len}"
                )
            return Attend(*self.turns(self._positions(tokens, None)))
        if cache.rows != b:
            raise EngineError(
                f"{b} sequences for a cache of {cache.rows} rows; give a cache of as many rows, "
                f"for example cache.slice(0, {b})"
            )
        width, positions = cache.attended(t), cache.positions(t)
        cos, sin = self.turns(self._positions(tokens, cache))
        if width == t:  # nothing came before
            return Attend(cos, sin, cache, positions)
        attended = torch.arange(width, device=tokens.device)
        mask = attended <= positions[:, None, :, None]
        return Attend(cos, sin, cache, positions, mask)

    def turns(self, positions: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """cos and sin at positions (b or 1, t), each (b or 1, 1, t, d / 2)."""
        if self.config.positions != "rope":
            return None, None
        return self.rope_cos[positions][:, None], self.rope_sin[positions][:, None]

    def count_parameters(self) -> int:
        """Numbers that training changes; see `mhc_model.decoder.size`."""
        return count_parameters(self)

    def estimate_flops(self, context: int | None = None) -> int:
        """FLOPs per token of forward and backward at a context of T tokens; None is the model's."""
        return estimate_flops(self, self.config, context)


@contextmanager
def watching(decoder: Decoder, watch: Watch) -> Iterator[None]:
    """Sets `decoder.watch` inside the block; one at a time."""
    before, decoder.watch = decoder.watch, watch
    try:
        yield
    finally:
        decoder.watch = before
