"""Our checkpoint directories in transformers, and in everything built on it (lm-eval, Trainer).

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

or, without remote code, `MHCGatesForCausalLM.from_pretrained(directory)`. The weights file has the
decoder's own keys; transformers adds the prefix `model.` when it loads them. Generation recomputes
the whole sequence at every step: right, but slow; `mhc_model.Engine` is the fast path.

Axes: b batch, t token, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import logging

from mhc_model.checkpoint import MODEL_TYPE, shape_entries
from mhc_model.config import ModelConfig
from mhc_model.decoder import Decoder, quiet_about_mixing, rope_table
from mhc_model.errors import ConfigError, EngineError, GateError
from mhc_model.gates import RequestGates, expand_gates, resolve_gates
from mhc_model.settings import validate_settings
from mhc_model.streams import scale_columns

logger = logging.get_logger(__name__)


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

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        gates: RequestGates = None,
        past_key_values: None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits, and the loss where there are labels.

        Args:
            input_ids: (b, t) int64.
            attention_mask: (b, t), 1 for tokens and 0 for padding on either side. Logits at padding
                mean nothing.
            labels: (b, t) int64, equal to input_ids; -100 is left out. They are shifted here.
            gates: (b, 2L) tensor, a row per sequence; or what `resolve_gates` takes, for all rows:
                None for the learned gates, numbers, or the name of a behaviour.
            past_key_values: must be None.
            use_cache: has no effect: there is no cache to return.
            return_dict: False gives a tuple.

        Raises:
            EngineError: for a mask with holes, a cache, or a sequence beyond the context.
            GateError: for gates of a wrong shape or range.
        """
        if past_key_values is not None:
            raise EngineError("past_key_values are not supported: leave them out, or use Engine")
        rows = self._gate_rows(gates, len(input_ids))
        logits = self._logits(input_ids, attention_mask, rows)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        output = CausalLMOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def _logits(self, input_ids: Tensor, mask: Tensor | None, gates: Tensor | None) -> Tensor:
        """(b, t, v) logits; rows that are padded on the left are shifted to start at position 0."""
        if mask is None or bool(mask.all()):
            return self.model(input_ids, gates)
        if mask.shape != input_ids.shape:
            raise EngineError(
                f"attention_mask has shape {tuple(mask.shape)}; expected {tuple(input_ids.shape)}"
            )
        kept, t = mask.bool(), input_ids.shape[1]
        column = torch.arange(t, device=input_ids.device)
        start = kept.int().argmax(dim=1, keepdim=True)
        end = start + kept.sum(dim=1, keepdim=True)
        if not torch.equal(kept, (column >= start) & (column < end)):
            raise EngineError(
                "attention_mask has zeros between ones; padding goes to the left or the right end"
            )
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
        position_ids: Tensor | None = None,
        **prepared: Any,
    ) -> dict[str, Any]:
        """The whole sequence at every step; a cache that `generate` has `prepared` stays empty."""
        if position_ids is not None:
            raise EngineError("position_ids are not supported: give attention_mask for padding")
        if use_cache:
            logger.warning_once("use_cache has no effect here; mhc_model.Engine has a cache")
        return {"input_ids": input_ids, "attention_mask": attention_mask, "gates": gates}
