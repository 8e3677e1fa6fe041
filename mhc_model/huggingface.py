"""Our checkpoint directories in transformers, and in everything built on it (lm-eval, Trainer).

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

or, without remote code, `MHCGatesForCausalLM.from_pretrained(directory)`. The weights file has the
decoder's own keys; transformers adds the prefix `model.` when it loads them, and writes it. What
`save_pretrained` wrote is read by the engine, serve, evals and convert too. Generation keeps keys
and values in transformers' own caches; `mhc_model.Engine` is the fast path for many requests.

Axes: b batch, t token, s attended position, c channel, h head, v vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from mhc_model.checkpoint import MODEL_TYPE, config_entries, shape_entries, write_remote_code
from mhc_model.config import ModelConfig
from mhc_model.decoder import Attend, Decoder, KVCache, quiet_about_mixing, rope_table
from mhc_model.errors import ConfigError, EngineError, GateError
from mhc_model.files import replace_json
from mhc_model.gates import RequestGates, expand_gates, resolve_gates
from mhc_model.settings import validate_settings
from mhc_model.streams import Coefficients, scale_columns


class MHCGatesConfig(PreTrainedConfig):
    """A `ModelConfig` in transformers' clothes: `mhc_gates` holds it, the usual names follow."""

    model_type = MODEL_TYPE

    def __init__(self, mhc_gates: dict[str, Any] | None = None, **entries: Any) -> None:
        """Builds the configuration.

        Args:
            mhc_gates: the dump of a `ModelConfig`; none means its defaults.
            entries: transformers' own; sizes may be given only as they follow from `mhc_gates`.

        Raises:
            ConfigError: if `mhc_gates` is no ModelConfig, or a size contradicts it.
        """
        config = validate_settings(ModelConfig, mhc_gates or {}, "entry mhc_gates of config.json")
        sizes = shape_entries(config)
        for name, value in sizes.items():
            if entries.get(name, value) != value:
                raise ConfigError(
                    f"{name} is {entries[name]}, but mhc_gates makes it {value}; change mhc_gates"
                )
        super().__init__(**{**entries, **sizes})
        self.mhc_gates = config.model_dump(mode="json")

    @classmethod
    def from_model_config(cls, config: ModelConfig, **entries: Any) -> MHCGatesConfig:
        return cls(mhc_gates=config.model_dump(mode="json"), **entries)

    def to_model_config(self) -> ModelConfig:
        return validate_settings(ModelConfig, self.mhc_gates, "entry mhc_gates of config.json")


class MHCGatesForCausalLM(PreTrainedModel, GenerationMixin):
    """`Decoder` with transformers' interface; `self.model` is the decoder itself."""

    config_class = MHCGatesConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True  # the decoder's own, switched by transformers
    _no_split_modules = ["Layer"]  # noqa: RUF012 (transformers' attribute)
    # As in checkpoint.py: matrices follow the asked dtype, connections and gates stay float32.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        "attention_connection",
        "mlp_connection",
        "collapse_connection",
        "gate_logits",
    ]

    def __init__(self, config: MHCGatesConfig) -> None:
        super().__init__(config)
        # from_pretrained builds models on the meta device, where a seeded init cannot run.
        with torch.device("cpu"), quiet_about_mixing():
            self.model = Decoder(config.to_model_config())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Fills what no checkpoint gave: always the tables, and parameters not yet loaded.

        transformers replaces non-persistent buffers by uninitialised memory in from_pretrained;
        `init.copy_` leaves alone what is marked as loaded.
        """
        if not isinstance(module, Decoder):
            return
        if module.config.positions == "rope":
            for name, table in zip(
                ("rope_cos", "rope_sin"), rope_table(module.config), strict=True
            ):
                init.copy_(module.get_buffer(name), table)
        for connection in module.connections():
            init.copy_(connection.columns, scale_columns(connection.config))
        parameters = list(module.parameters())
        if not all(getattr(p, "_is_hf_initialized", False) for p in parameters):
            with torch.device("cpu"), quiet_about_mixing():
                fresh = Decoder(module.config)
            for parameter, value in zip(parameters, fresh.parameters(), strict=True):
                init.copy_(parameter, value)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.model.embedding if self.model.head is None else self.model.head

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.model.head = value

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As transformers does it; the configuration follows."""
        embedding = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        size = {"vocab_size": self.model.embedding.num_embeddings}
        self.config.mhc_gates = {**self.config.mhc_gates, **size}
        self.model.config = self.model.config.model_copy(update=size)
        return embedding

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """As transformers does it, with the remote code of our checkpoints, not a copy of this."""
        super().save_pretrained(save_directory, *arguments, **options)
        directory = Path(save_directory)
        path = directory / "config.json"
        if not path.exists():  # another process writes it
            return
        entries = json.loads(path.read_text(encoding="utf-8"))
        ours = config_entries(self.config.to_model_config())
        replace_json(path, {**entries, "auto_map": ours["auto_map"]})
        write_remote_code(directory)
        (directory / Path(__file__).name).unlink(missing_ok=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        gates: RequestGates = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Logits, and the loss where there are labels.

        Args:
            input_ids: (b, t) int64.
            attention_mask: (b, t), 1 for tokens and 0 for padding on either side; with a cache it
                covers what is in it too. Logits at padding mean nothing.
            labels: (b, t) int64, equal to input_ids; -100 is left out. They are shifted here.
            gates: (b, 2L) tensor, a row per sequence; or what `resolve_gates` takes, for all rows:
                None for the learned gates, numbers, or the name of a behaviour.
            past_key_values: keys and values of what came before; input_ids continue it.
            use_cache: give such a cache back. None does where one is given.
            return_dict: False gives a tuple.
            output_hidden_states: L + 1 tensors (b, t, c): the mean of the streams before each
                layer, then the normalised output of the last one. None is the configuration's.
            output_attentions: L tensors (b, h, t, s), what each token took of each. None is the
                configuration's.

        Raises:
            EngineError: for a mask with holes, something else than a cache, or a sequence beyond
                the context.
            GateError: for gates of a wrong shape or range.
        """
        if past_key_values is not None and not isinstance(past_key_values, Cache):
            raise EngineError(
                f"past_key_values are of type {type(past_key_values).__name__}; give a Cache of "
                f"transformers, or leave them out"
            )
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        with_states = self._asked(output_hidden_states, "output_hidden_states")
        weights: dict[int, Tensor] | None = None
        if self._asked(output_attentions, "output_attentions"):
            weights = {}
        rows = self._gate_rows(gates, len(input_ids))
        with self._means(with_states) as states:
            if past_key_values is None and weights is None and not with_states:
                logits = self._logits(input_ids, attention_mask, rows)
            else:
                hidden = self._hidden(input_ids, attention_mask, rows, past_key_values, weights)
                states[self.model.config.n_layers] = hidden
                logits = self.model.logits(hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=None if use_cache is False else past_key_values,
            hidden_states=tuple(states[i] for i in sorted(states)) if with_states else None,
            attentions=None if weights is None else tuple(weights[i] for i in sorted(weights)),
        )
        return output.to_tuple() if return_dict is False else output

    def _asked(self, given: bool | None, name: str) -> bool:
        return bool(getattr(self.config, name, False) if given is None else given)

    @contextmanager
    def _means(self, wanted: bool) -> Iterator[dict[int, Tensor]]:
        """By layer what goes into it, (b, t, c), of the passes inside; nothing unless wanted."""
        states: dict[int, Tensor] = {}
        if not wanted:
            yield states
            return
        before, handles = self.model.watch, []

        def look(k: int, x: Tensor, coefficients: Coefficients, gates: Tensor) -> None:
            if k % 2 == 0:
                states[k // 2] = x.mean(dim=-2)
            if before is not None:
                before(k, x, coefficients, gates)

        def keep(index: int, x: Tensor) -> None:
            states[index] = x

        if self.model.config.mhc is None:
            for i, layer in enumerate(self.model.layers):
                hook = layer.attention_norm.register_forward_pre_hook
                handles.append(hook(lambda _, given, i=i: keep(i, given[0])))
        else:
            self.model.watch = look
        try:
            yield states
        finally:
            self.model.watch = before
            for handle in handles:
                handle.remove()

    def _hidden(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        gates: Tensor | None,
        past: Cache | None,
        weights: dict[int, Tensor] | None,
    ) -> Tensor:
        """(b, t, c) with what transformers' cache holds before, each row from its first token."""
        (b, t), before = tokens.shape, 0 if past is None else int(past.get_seq_length())
        total, limit = before + t, self.model.config.max_seq_len
        if total > limit:
            raise EngineError(f"sequence of {total} tokens exceeds the context of {limit}")
        kept = _without_holes(mask, (b, total), tokens.device)
        positions = (kept.cumsum(dim=1) - 1).clamp_min(0)[:, before:]
        column = torch.arange(total, device=tokens.device)
        own = column[before:, None]
        # Padding looks at itself: a row without anything to look at would not be a number.
        seen = (kept[:, None] & (column <= own)) | (column == own)
        cache = None if past is None else cast(KVCache, _CacheOf(past))
        cos, sin = self.model.turns(positions)
        attend = Attend(cos, sin, cache, positions, seen[:, None], weights=weights)
        gates = self.model.checked_gates(gates, b, t)
        return self.model.through_layers(tokens, positions, gates, attend)

    def _logits(self, input_ids: Tensor, mask: Tensor | None, gates: Tensor | None) -> Tensor:
        """(b, t, v) logits; rows that are padded on the left are shifted to start at position 0."""
        if mask is None or bool(mask.all()):
            return self.model(input_ids, gates)
        kept, t = _without_holes(mask, tuple(input_ids.shape), input_ids.device), input_ids.shape[1]
        column = torch.arange(t, device=input_ids.device)
        start = kept.int().argmax(dim=1, keepdim=True)
        # Causal attention never looks right: padding moved behind the tokens changes nothing.
        logits = self.model(input_ids.gather(1, (column + start) % t), gates)
        return logits.gather(1, ((column - start) % t)[..., None].expand_as(logits))

    def _gate_rows(self, gates: RequestGates, batch: int) -> Tensor | None:
        """(b, 2L) or None."""
        if gates is None:
            return None
        if self.model.config.gateless is not None:
            raise GateError(f"this model is {self.model.config.gateless}: it takes no gates")
        n_layers = self.model.config.n_layers
        if isinstance(gates, Tensor) and gates.ndim == 2:
            if gates.shape[0] != batch:
                raise GateError(f"gates have {gates.shape[0]} rows for a batch of {batch}")
            return torch.stack([expand_gates(row, n_layers) for row in gates])
        phases = resolve_gates(gates, self.model.config)
        if phases.prompt is not phases.answer:
            raise GateError(
                "gates of prompt and answer apart are not supported here: transformers does not "
                "tell where a prompt ends; use Engine"
            )
        return None if phases.prompt is None else phases.prompt.expand(batch, -1)

    def prepare_inputs_for_generation(  # type: ignore[override]  # all but the ids come by name
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        gates: RequestGates = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        **prepared: Any,
    ) -> dict[str, Any]:
        """What is not in the cache yet; the whole sequence without a cache."""
        if position_ids is not None:
            raise EngineError("position_ids are not supported: give attention_mask for padding")
        if past_key_values is not None:
            input_ids = input_ids[:, int(past_key_values.get_seq_length()) :]
        wanted = ("output_hidden_states", "output_attentions")
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "gates": gates,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            **{name: prepared[name] for name in wanted if name in prepared},
        }


class _CacheOf:
    """A cache of transformers as the decoder's attention writes and reads one."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> None:
        self._kept[layer] = self._cache.update(k, v, layer)

    def read(self, layer: int, width: int) -> tuple[Tensor, Tensor]:
        """Both (b, h, s, d) of the first `width` places: a cache of a fixed size has more."""
        k, v = self._kept.pop(layer)
        return k[:, :, :width], v[:, :, :width]


def _without_holes(mask: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The mask as (b, t) bool: tokens in one piece, padding at either end.

    Raises:
        EngineError: for another shape, or padding between tokens.
    """
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if tuple(mask.shape) != shape:
        raise EngineError(f"attention_mask has shape {tuple(mask.shape)}; expected {shape}")
    kept, column = mask.bool(), torch.arange(shape[1], device=device)
    start = kept.int().argmax(dim=1, keepdim=True)
    end = start + kept.sum(dim=1, keepdim=True)
    if not torch.equal(kept, (column >= start) & (column < end)):
        raise EngineError(
            "attention_mask has zeros between ones; padding goes to the left or the right end"
        )
    return kept
