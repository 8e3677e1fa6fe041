"""Generation for a running batch in which every row has its own gates.

Requests join and leave at any step (continuous batching). Each step decodes one token for every row
that generates, then reads a chunk of the prompts that are not yet read, so that a long prompt holds
nobody up for longer than a chunk. Whoever finds no row, or no room in the cache, waits in line.

Greedy output does not depend on who shares the batch, up to the rounding of batched matrix
products: logits agree to 1e-4 in float32. Sampled output depends on the request's seed alone.

One thread drives an engine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mhc_model.checkpoint import load_checkpoint
from mhc_model.decoder import Decoder
from mhc_model.engine.arena import KVArena
from mhc_model.engine.base import EngineBase
from mhc_model.engine.batch import Batch, Drawn
from mhc_model.engine.decode import DecodeStep
from mhc_model.engine.prefill import choose_chunks, score_prompts
from mhc_model.engine.prefix_cache import PrefixCache, block_names
from mhc_model.engine.request import Completion, EngineStats
from mhc_model.engine.row import Row
from mhc_model.engine.scheduler import Scheduler
from mhc_model.errors import EngineError
from mhc_model.tokenizer import Tokenizer

PREFIX_CACHE_BYTES = 256 << 20
# Prompt tokens read in a step beside rows that decode, and where none does.
PREFILL_CHUNK = 512
IDLE_PREFILL = 8192
# While samples wait for a row, the engine holds prompts back for at most so many steps: it then
# reads them in one pass with the prompts of the next rows.
MOST_HELD = 6


class Engine(EngineBase):
    """Token ids in, token ids out; see the module's docstring."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None = None,
        max_batch: int = 32,
        max_seq_len: int | None = None,
        checkpoint_hash: str | None = None,
        *,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        prefill_chunk: int = PREFILL_CHUNK,
        cuda_graphs: bool = False,
    ) -> None:
        """Allocates the cache on the model's device.

        Args:
            model: stays where it is; put into eval mode. Its weights must not change while the
                engine uses it (or call `clear_prefix_cache`).
            tokenizer: gives completions their text, stop strings their meaning, and the token at
                which a document ends.
            max_batch: rows of the batch; further requests wait.
            max_seq_len: positions of a row, prompt and completion; None takes the model's context.
            checkpoint_hash: the content hash of the weights, for results and logs.
            kv_cache_bytes: memory for the keys and values of the batch; None is enough for
                `max_batch` rows of `max_seq_len`. With less, rows are as long as the requests at
                hand need, and as many as fit.
            prefix_cache_bytes: memory for keys and values of prompts' beginnings, kept for later
                requests with the same tokens and gates; 0 keeps none.
            prefill_chunk: most prompt tokens read in a step while rows decode.
            cuda_graphs: record the decoding step on a GPU and replay it.

        Raises:
            EngineError: if max_batch < 1, max_seq_len is outside the context, the budget does not
                hold a single token, prefill_chunk < 1, or there is no GPU to record on.
        """
        for name, value, least in (
            ("max_batch", max_batch, 1),
            ("prefill_chunk", prefill_chunk, 1),
            ("prefix_cache_bytes", prefix_cache_bytes, 0),
        ):
            if value < least:
                raise EngineError(f"{name} is {value}; it must be at least {least}")
        super().__init__(model.eval(), tokenizer, max_batch, checkpoint_hash)
        self.prefill_chunk = prefill_chunk
        dtype = model.embedding.weight.dtype
        self._arena = KVArena(
            model.config, max_batch, max_seq_len, kv_cache_bytes, self.device, dtype
        )
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._batch = Batch(max_batch, model.config.n_gates, self.device, model.config.vocab_size)
        if cuda_graphs and self.device.type != "cuda":
            raise EngineError(f"cuda_graphs needs a model on a GPU; it is on {self.device}")
        self._decode_step = DecodeStep(model, self._batch, records=cuda_graphs)
        self._line = Scheduler(self._batch, self._arena, self._prefixes)
        self._held = 0  # steps in which prompts were held back, one after another

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
    ) -> Engine:
        """An engine over a checkpoint or run directory; device "auto" is CUDA if there is one."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_checkpoint(path, device, dtype)
        return cls(
            loaded.model,
            loaded.tokenizer,
            max_batch,
            max_seq_len,
            loaded.content_hash,
            kv_cache_bytes=kv_cache_bytes,
            prefix_cache_bytes=prefix_cache_bytes,
            prefill_chunk=prefill_chunk,
            cuda_graphs=cuda_graphs,
        )

    @property
    def max_seq_len(self) -> int:
        """Longest prompt and completion together, in tokens."""
        return self._arena.max_seq_len

    @property
    def active(self) -> int:
        """Samples that hold a row."""
        return len(self._batch.taken)

    @property
    def waiting(self) -> int:
        """Samples that wait for a row."""
        return len(self._line.waiting)

    def stats(self) -> EngineStats:
        """What the engine does now, and its counters."""
        rows = self._batch.taken
        prefilling = sum(row.prefilling for row in rows)
        return dataclasses.replace(
            self._stats,
            waiting=self.waiting,
            prefilling=prefilling,
            decoding=len(rows) - prefilling,
            kv_tokens=sum(row.length for row in rows),
            kv_capacity=self._arena.positions,
            prefix_cache_bytes=self._prefixes.size,
        )

    def clear_prefix_cache(self) -> None:
        self._prefixes.clear()

    def _enqueue(self, row: Row) -> None:
        if self._prefixes.capacity:
            row.blocks = block_names(row.prompt, row.gates)
        self._line.waiting.append(row)

    def _release(self, row: Row) -> None:
        self._line.release(row)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Decodes one token a row, reads a chunk of prompts, and returns the samples that ended."""
        finished = []
        if self._cancelled:
            withdrawn = self._line.withdraw(self._cancelled)
            finished = [self._complete(row, "cancelled") for row in withdrawn]
        for row in self._line.admit():
            self._count(prompt_tokens=len(row.prompt), cached_tokens=row.cached)
        if not self._batch.taken:
            return finished
        self._count(steps=1)
        decoding = [row for row in self._batch.taken if not row.prefilling]
        if decoding:
            self._decode(decoding)
        reading = [row for row in self._batch.taken if row.prefilling]
        if reading and not (decoding and self._expects_company(reading)):
            self._prefill(reading, self.prefill_chunk if decoding else IDLE_PREFILL)
        for row in self._batch.taken:
            if row.prefilling:
                continue
            reason = row.finish_reason(self.tokenizer)
            self._stream(row, final=reason is not None)
            if reason is not None:
                finished.append(self._complete(row, reason))
        return finished

    # What a step computes

    def _decode(self, rows: Sequence[Row]) -> None:
        """One token for every row."""
        batch = self._batch
        width = max(row.length for row in rows) + 1
        batch.constrain(rows)
        drawn = self._decode_step(self._arena.cache, batch.high, width, batch.wanted(rows))
        self._append(rows, drawn, [row.slot or 0 for row in rows])

    def _expects_company(self, reading: Sequence[Row]) -> bool:
        """Whether prompts are held back to be read with those that follow: one pass for all.

        Only while others wait for a row, and for a few steps: a pass over one short prompt takes
        little less than one over several.
        """
        left = sum(len(row.prompt) - row.filled for row in reading)
        if self.waiting and left < self.prefill_chunk // 2 and self._held < MOST_HELD:
            self._held += 1
            return True
        self._held = 0
        return False

    def _prefill(self, reading: Sequence[Row], budget: int) -> None:
        left = budget
        while reading and left > budget // 4:  # a last small pass would cost more than it brings
            rows, counts = choose_chunks(reading, left)
            left -= len(rows) * max(counts)
            self._read(rows, counts)
            reading = [row for row in reading if row.prefilling]

    def _read(self, rows: Sequence[Row], counts: Sequence[int]) -> None:
        """Feeds the next `counts` tokens of the prompts of rows, and draws where one ends."""
        batch, cache, longest = self._batch, self._arena.cache, max(counts)
        index = torch.tensor([row.slot for row in rows], device=self.device)
        padded = [
            row.prompt[row.filled : row.filled + count] + [0] * (longest - count)
            for row, count in zip(rows, counts, strict=True)
        ]
        tokens = torch.tensor(padded, device=self.device)
        width = max(row.filled + count for row, count in zip(rows, counts, strict=True))
        # As wide as long says that nothing came before, to the decoder.
        fresh = not any(row.filled for row in rows)
        part = cache.select(index, longest if fresh else max(width, longest + 1))
        gates = None if batch.gates is None else batch.gates[index]
        hidden = self.model.hidden(tokens, gates, part)
        score_prompts(self.model, hidden, rows, counts)
        for row, count in zip(rows, counts, strict=True):
            row.filled += count
        cache.lengths[index] = torch.tensor([row.filled for row in rows], device=self.device)
        ended = [place for place, row in enumerate(rows) if not row.prefilling]
        if ended:
            places = torch.tensor(ended, device=self.device)
            last = hidden[places, torch.tensor([counts[place] - 1 for place in ended])]
            self._begin([rows[place] for place in ended], index[places], last)

    def _begin(self, rows: Sequence[Row], slots: Tensor, last: Tensor) -> None:
        """Draws the first token of rows whose prompt is read, from its last output (r, c)."""
        for row in rows:
            self._line.has_read(row)
            self._batch.answer(row)
        self._batch.live[slots] = 1
        if any(row.request.sampling.max_tokens for row in rows):
            self._batch.constrain(rows)
            drawn = self._batch.draw(self.model.logits(last), slots, self._batch.wanted(rows))
            self._append(rows, drawn, list(range(len(rows))))

    def _append(self, rows: Sequence[Row], drawn: Drawn, places: Sequence[int]) -> None:
        """Hands drawn tokens to their rows; `places` are the rows' in `drawn`."""
        tokens = drawn.tokens.tolist()
        logprobs = None if drawn.logprobs is None else drawn.logprobs.tolist()
        top = None if drawn.top is None else [part.tolist() for part in drawn.top]
        now, generated = time.perf_counter(), 0
        for row, place in zip(rows, places, strict=True):
            sampling = row.request.sampling
            if sampling.max_tokens == 0:
                continue
            generated += 1
            row.append(tokens[place], now)
            if sampling.logprobs and logprobs is not None:
                row.logprobs.append(logprobs[place])
                if sampling.top_logprobs and top is not None:
                    likeliest = zip(top[1][place], top[0][place], strict=True)
                    row.top_logprobs.append(tuple(likeliest)[: sampling.top_logprobs])
        self._count(generated_tokens=generated)
