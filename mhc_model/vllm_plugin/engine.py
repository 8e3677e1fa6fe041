"""vLLM behind the interface of `mhc_model.Engine`.

vLLM schedules, decodes and samples, in this process; what a request is, where its text ends and
what is streamed of it stays ours (`Row`), so that both engines give the same completions. Sampled
tokens differ from the torch engine's: vLLM draws with other random numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import vllm
from pydantic import ValidationError
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from mhc_model.checkpoint import (
    checkpoint_tokenizer,
    find_checkpoint,
    read_model_config,
    stored_dtype,
    verified_manifest,
)
from mhc_model.config import MAX_TOP_LOGPROBS, ModelConfig
from mhc_model.decoder import Decoder
from mhc_model.engine import (
    PREFILL_CHUNK,
    PREFIX_CACHE_BYTES,
    Alternatives,
    Completion,
    EngineBase,
    EngineStats,
    Row,
)
from mhc_model.errors import ConfigError, EngineError
from mhc_model.huggingface import MHCGatesConfig
from mhc_model.tokenizer import FAST_FILE, Tokenizer
from mhc_model.vllm_plugin import register
from mhc_model.vllm_plugin.model import paged_head_dim
from mhc_model.vllm_plugin.sampling import sampling_of

# Tokens of a page of the cache: what vLLM's attention on a CPU wants, and the usual one on a GPU.
CPU_BLOCK, GPU_BLOCK = 32, 16


class VLLMEngine(EngineBase):
    """Token ids in, token ids out, decoded by vLLM; see the module's docstring."""

    def __init__(
        self,
        engine: LLMEngine,
        tokenizer: Tokenizer | None,
        checkpoint_hash: str | None,
        max_seq_len: int,
    ) -> None:
        """Takes over an idle engine of vLLM that runs in this process.

        `from_checkpoint` makes one.

        Args:
            engine: of one of our checkpoints, without a tokenizer of its own.
            tokenizer: as for `mhc_model.Engine`.
            checkpoint_hash: the content hash of the weights.
            max_seq_len: longest prompt and completion together.
        """
        worker = engine.model_executor.driver_worker.worker
        model: Decoder = worker.model_runner.get_model().decoder
        max_batch = engine.vllm_config.scheduler_config.max_num_seqs
        super().__init__(model, tokenizer, max_batch, checkpoint_hash)
        self._engine = engine
        self._scheduler = engine.engine_core.engine_core.scheduler
        self._max_seq_len = max_seq_len
        self._names = itertools.count()
        self._rows: dict[str, Row] = {}  # by the name that vLLM gives out
        self._inner: dict[Row, str] = {}  # the name that vLLM's scheduler uses

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        max_batch: int = 32,
        max_seq_len: int | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        *,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        prefill_chunk: int = PREFILL_CHUNK,
        cuda_graphs: bool = False,
        compiled: bool = False,
    ) -> VLLMEngine:
        """An engine over a checkpoint or run directory.

        Args:
            path: see `load_checkpoint`.
            max_batch: samples that are decoded at a time.
            max_seq_len: longest prompt and completion together; None takes the model's context.
            device: "auto", or the one that the installed vLLM is built for: "cpu" or "cuda".
            dtype: of matrices and embeddings; None is the checkpoint's.
            kv_cache_bytes: memory for keys and values; None is enough for `max_batch` rows.
            prefix_cache_bytes: memory added for prompts' beginnings; 0 reuses none.
            prefill_chunk: most tokens of a step, of prompts and of rows that decode.
            cuda_graphs: compile the model and record CUDA graphs, on a GPU.
            compiled: compile the model, on any device.

        Raises:
            CheckpointError: as `load_checkpoint`.
            ConfigError: if vLLM cannot serve such a model or setting.
            EngineError: if the memory or the limits do not fit the model.
        """
        directory = find_checkpoint(path)
        manifest = verified_manifest(directory)
        config = read_model_config(directory)
        _check_device(device, cuda_graphs)
        context = config.max_seq_len if max_seq_len is None else max_seq_len
        if not 1 <= context <= config.max_seq_len:
            raise EngineError(
                f"max_seq_len is {max_seq_len}; it must be 1 to {config.max_seq_len}, the "
                f"model's context"
            )
        if max_batch < 1:
            raise EngineError(f"max_batch is {max_batch}; it must be at least 1")
        dtype = stored_dtype(directory) if dtype is None else dtype
        if kv_cache_bytes is None:
            kv_cache_bytes = cache_bytes(config, max_batch, context, dtype)
        engine = start(
            directory,
            dtype=dtype,
            context=context,
            max_num_seqs=max_batch,
            max_num_batched_tokens=max(prefill_chunk, max_batch),
            kv_cache_memory_bytes=kv_cache_bytes + prefix_cache_bytes,
            enable_prefix_caching=prefix_cache_bytes > 0,
            enforce_eager=not (cuda_graphs or compiled),
        )
        return cls(engine, checkpoint_tokenizer(directory), manifest["content_hash"], context)

    @property
    def max_seq_len(self) -> int:
        return self._max_seq_len

    @property
    def active(self) -> int:
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        return max(0, len(self._rows) - self.active)

    @property
    def has_work(self) -> bool:
        return bool(self._rows)

    def stats(self) -> EngineStats:
        """As `EngineBase`; tokens of the cache are those of its pages in use."""
        cache = self._engine.vllm_config.cache_config
        capacity = (cache.num_gpu_blocks or 0) * cache.block_size
        running = self._running()
        prefilling = sum(row.prefilling for row, name in self._inner.items() if name in running)
        return dataclasses.replace(
            self._stats,
            waiting=self.waiting,
            prefilling=prefilling,
            decoding=len(running) - prefilling,
            kv_tokens=round(self._scheduler.kv_cache_manager.usage * capacity),
            kv_capacity=capacity,
        )

    def clear_prefix_cache(self) -> None:
        self._engine.reset_prefix_cache()

    def step(self) -> list[Completion]:
        finished = []
        if self._cancelled:
            withdrawn = [row for row in self._inner if row.request.id in self._cancelled]
            finished = [self._complete(row, "cancelled") for row in withdrawn]
        if not self._rows:
            return finished
        self._count(steps=1)
        outputs = self._engine.step()
        self._note_starts()
        for output in outputs:
            row = self._rows.get(output.request_id)
            if row is not None:  # else it was withdrawn
                finished += self._take(row, output)
        return finished

    def _enqueue(self, row: Row) -> None:
        name = str(next(self._names))
        try:
            inner = self._engine.add_request(name, tokens_input(row.prompt), sampling_of(row))
        except ValueError as error:  # vLLM refuses some forms of answers that llguidance has
            self._samples.pop(row.request.id, None)
            raise EngineError(f"vLLM refuses the request: {error}") from error
        self._rows[name] = row
        self._inner[row] = inner

    def _release(self, row: Row) -> None:
        inner = self._inner.pop(row)
        self._rows = {name: other for name, other in self._rows.items() if other is not row}
        self._engine.abort_request([inner], internal=True)

    def _running(self) -> set[str]:
        """Samples that hold a row, by their inner names."""
        return {request.request_id for request in self._scheduler.running}

    def _note_starts(self) -> None:
        running, now = self._running(), time.perf_counter()
        for row, name in self._inner.items():
            if row.started is None and name in running:
                row.started = now

    def _take(self, row: Row, output: RequestOutput) -> list[Completion]:
        """What a step gave a sample; its completion, if it ended."""
        now = time.perf_counter()
        if row.prefilling:
            row.started = now if row.started is None else row.started
            row.filled = len(row.prompt)
            row.cached = output.num_cached_tokens or 0
            self._count(prompt_tokens=len(row.prompt), cached_tokens=row.cached)
        if output.prompt_logprobs:
            _take_prompt_logprobs(row, output.prompt_logprobs)
        (part,) = output.outputs
        tokens = [] if row.request.sampling.max_tokens == 0 else part.token_ids
        for place, token in enumerate(tokens):
            row.append(token, now)
            self._count(generated_tokens=1)
            if part.logprobs and row.request.sampling.logprobs:
                _take_logprobs(row, part.logprobs[place], token)
            reason = row.finish_reason(self.tokenizer)
            if reason is not None:
                break
        else:
            reason = None if tokens else row.finish_reason(self.tokenizer)
        if reason is None and output.finished:  # both count tokens and know the stop ids
            raise EngineError(f"vLLM ended request {row.request.id!r} as {part.finish_reason!r}")
        self._stream(row, final=reason is not None)
        return [] if reason is None else [self._complete(row, reason)]


def start(directory: Path, *, dtype: torch.dtype, context: int, **arguments: Any) -> LLMEngine:
    """vLLM's engine over one of our checkpoints, in this process, without a tokenizer.

    Args:
        directory: of the checkpoint.
        dtype: of matrices and embeddings.
        context: longest prompt and completion.
        arguments: further ones of vLLM's `EngineArgs`.

    Raises:
        ConfigError: if our plugin or vLLM refuses the configuration.
        EngineError: if vLLM does not start with it.
    """
    register()
    # vLLM would bind each engine to the same cores, whatever else runs there.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    set_num_threads = torch.set_num_threads
    try:
        config = EngineArgs(
            model=str(directory),
            # Prompts come as tokens and text is ours; vLLM needs its own for forms of answers.
            skip_tokenizer_init=not (directory / FAST_FILE).exists(),
            structured_outputs_config={"backend": "guidance"},
            generation_config="vllm",
            dtype=str(dtype).removeprefix("torch."),
            # One more than fits: vLLM generates a token also where only the prompt is scored.
            max_model_len=context + 1,
            hf_overrides=_one_longer,
            block_size=CPU_BLOCK if current_platform.is_cpu() else GPU_BLOCK,
            max_logprobs=MAX_TOP_LOGPROBS,
            **{"disable_log_stats": True, "seed": 0, **arguments},
        ).create_engine_config()
        # On a CPU vLLM takes a process of its own, to choose its threads; here the caller does.
        config.parallel_config.distributed_executor_backend = "uni"
        engine = LLMEngine(config, Executor.get_class(config), log_stats=False)
    except ValueError as error:
        if isinstance(error, ValidationError):  # pydantic's, around our own
            for entry in error.errors():
                ours = entry.get("ctx", {}).get("error")
                if isinstance(ours, ConfigError):
                    raise ours from None
        raise EngineError(
            f"vLLM {vllm.__version__} does not start with {directory}: {error}"
        ) from error
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's worker makes it do nothing
    # The end of one engine would take the process groups from all others of this process.
    engine.engine_core._finalizer.detach()
    return engine


def _one_longer(config: Any) -> Any:
    if isinstance(config, MHCGatesConfig):  # vLLM also calls it with an empty configuration
        config.max_position_embeddings += 1
    return config


def cache_bytes(config: ModelConfig, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of the pages that `rows` sequences of `length` tokens fill, and of an unused one."""
    block = CPU_BLOCK if current_platform.is_cpu() else GPU_BLOCK
    pages = rows * -(-(length + 1) // block) + 1
    width = config.kv_heads * paged_head_dim(config.head_dim)
    return 2 * config.n_layers * width * dtype.itemsize * pages * block


def _take_logprobs(row: Row, entries: Any, token: int) -> None:
    row.logprobs.append(entries[token].logprob)
    if row.request.sampling.top_logprobs:
        row.top_logprobs.append(_likeliest(entries, row.request.sampling.top_logprobs))


def _take_prompt_logprobs(row: Row, positions: Sequence[Any]) -> None:
    sampling = row.request.sampling
    first = max(1, sampling.prompt_logprobs_from or 0)
    for token, entries in zip(row.prompt[first:], positions[first:], strict=True):
        row.prompt_logprobs.append(entries[token].logprob)
        row.prompt_top.append(_likeliest(entries, sampling.top_logprobs))
        row.prompt_ranks.append(entries[token].rank)


def _likeliest(entries: Any, count: int) -> Alternatives:
    """Of one position: vLLM's dictionary also holds the token itself, which may be unlikely."""
    ranked = sorted(entries.items(), key=lambda entry: entry[1].rank)
    return tuple((token, entry.logprob) for token, entry in ranked[:count])


def _check_device(device: str, cuda_graphs: bool) -> None:
    there = "cpu" if current_platform.is_cpu() else current_platform.device_type
    if device not in ("auto", there):
        raise ConfigError(f"device is {device!r}; the installed vLLM is built for {there!r}")
    if cuda_graphs and there != "cuda":
        raise EngineError(f"cuda_graphs needs a GPU; the installed vLLM is built for {there}")
