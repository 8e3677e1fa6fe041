"""Gates on their way into a forward pass, with vLLM's model runner V1 on a CPU.

Axes: t token (of all requests), r request.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from mhc_model.vllm_plugin.admission import gates_of


class GateRunner(CPUModelRunner):
    """vLLM's runner, which gives the model the gates of each token as a further argument."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        n_gates = vllm_config.model_config.hf_config.to_model_config().n_gates
        self._learned: Tensor | None = None
        # Of the requests of the last step: converting a list takes longer than the rest.
        self._known: dict[str, tuple[Any, Tensor]] = {}
        # One storage for all steps, as compiled code wants it.
        self._token_gates = torch.zeros(self.max_num_tokens, n_gates, device=device)

    def load_model(self, load_dummy_weights: bool = False) -> None:
        super().load_model(load_dummy_weights)
        self._read_learned()

    def reload_weights(self, *arguments: Any, **options: Any) -> None:
        super().reload_weights(*arguments, **options)
        self._read_learned()

    def _read_learned(self) -> None:
        decoder = self.get_model().decoder
        if decoder.config.gateless is None:
            self._learned = decoder.learned_gates().detach()
            self._token_gates[:] = self._learned

    def _init_model_kwargs(self, num_reqs: int | None = None) -> dict[str, Any]:
        """What vLLM passes to the model besides tokens and positions; 0 requests: a dummy run."""
        arguments = super()._init_model_kwargs(num_reqs)
        if self._learned is None:
            return arguments
        requests = self.input_batch.req_ids if num_reqs is None else []
        if requests:
            starts = torch.from_numpy(self.query_start_loc.np[: len(requests) + 1])
            counts = starts.diff()
            phases = torch.stack(self._rows(requests, self._learned))  # (r, 2, 2L)
            self._token_gates[: counts.sum()] = phases.flatten(0, 1).repeat_interleave(
                self._phase_counts(len(requests), counts), dim=0
            )
        return {**arguments, "gates": self._token_gates}

    def _phase_counts(self, requests: int, counts: Tensor) -> Tensor:
        """(2r,): of each request's `counts` tokens (r,), those of its prompt and of its answer."""
        batch = self.input_batch
        computed = torch.from_numpy(batch.num_computed_tokens_cpu[:requests])
        left = torch.from_numpy(batch.num_prompt_tokens[:requests]) - computed
        prompt = torch.minimum(left.clamp(min=0), counts)
        return torch.stack([prompt, counts - prompt], dim=1).flatten().long()

    def _rows(self, requests: list[str], learned: Tensor) -> list[Tensor]:
        """(2, 2L) of each request: the gates of its prompt and of its answer."""
        known, self._known = self._known, {}
        rows = []
        for name in requests:
            parameters = self.requests[name].sampling_params
            before, row = known.get(name, (self, learned))
            if before is not parameters:
                phases = gates_of(parameters)
                row = torch.stack(
                    [learned if gates is None else torch.tensor(gates) for gates in phases]
                )
            self._known[name] = (parameters, row)
            rows.append(row)
        return rows


class GateWorker(CPUWorker):
    """vLLM's worker with a `GateRunner`."""

    def init_device(self) -> None:
        super().init_device()
        self.model_runner = GateRunner(self.vllm_config, torch.device("cpu"))
