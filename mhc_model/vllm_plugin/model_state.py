"""Gates on their way into a forward pass, with vLLM's model runner V2 on a GPU.

Written after vLLM 0.32.0's source; no GPU has run it yet.

Axes: t token (of all requests), r request, s slot of a request.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from mhc_model.decoder import Decoder
from mhc_model.vllm_plugin.admission import gates_of


class GateModelState(DefaultModelState):
    """Holds the gates of every slot (s, 2 * 2L), those of its prompt first, and of every token of a
    step (t, 2L)."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        decoder = cast(Decoder, model.decoder)
        self._learned: list[float] | None = None
        if decoder.config.gateless is None:
            learned = decoder.learned_gates().detach()
            self._learned = learned.tolist()
            size = (self.max_num_reqs, 2 * len(self._learned))
            self._slots = StagedWriteTensor(size, torch.float32, device)
            # One storage for all steps: the replay of a CUDA graph reads it where it was recorded.
            self._token_gates = learned.repeat(self.max_num_tokens, 1)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        if self._learned is not None:
            phases = gates_of(new_req_data.sampling_params)
            # The learned ones are written too: the slot may hold those of another request.
            numbers = [self._learned if gates is None else gates for gates in phases]
            self._slots.stage_write(req_index, 0, [*numbers[0], *numbers[1]])

    def apply_staged_writes(self) -> None:
        super().apply_staged_writes()
        if self._learned is not None:
            self._slots.apply_write()

    def prepare_inputs(
        self, input_batch: InputBatch, req_states: RequestState
    ) -> dict[str, Tensor | None]:
        inputs: dict[str, Tensor | None] = super().prepare_inputs(input_batch, req_states)
        if self._learned is None:
            return inputs
        counts = input_batch.query_start_loc[: input_batch.num_reqs + 1].diff()
        # With its size known nothing waits for the GPU.
        slots = input_batch.idx_mapping[: input_batch.num_reqs].repeat_interleave(
            counts, output_size=input_batch.num_tokens
        )
        # Of each slot the gates of the prompt come first, and behind them those of the answer.
        answers = (
            input_batch.positions[: input_batch.num_tokens] >= req_states.prompt_len.gpu[slots]
        )
        torch.index_select(
            self._slots.gpu.view(-1, len(self._learned)),
            0,
            2 * slots + answers,
            out=self._token_gates[: input_batch.num_tokens],
        )
        return {**inputs, "gates": self._token_gates[: input_batch.num_tokens_after_padding]}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        inputs = super().prepare_dummy_inputs(num_reqs, num_tokens)
        if self._learned is None:
            return inputs
        return {**inputs, "gates": self._token_gates[:num_tokens]}
