"""Generation for a running batch in which every row has its own gates.

Requests join and leave at any step (continuous batching): the active requests fill the first rows
of one preallocated KV cache; a row that ends is replaced by the last one. Each step first prefills
waiting requests into free rows, then decodes one token for every row that was there before.

Greedy output does not depend on who shares the batch, up to the rounding of batched matrix
products: logits agree to 1e-4 in float32. Sampled output depends on the request's seed alone.

One thread drives an engine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from mhc_model.cache import KVCache
from mhc_model.checkpoint import load_checkpoint
from mhc_model.decoder import Decoder
from mhc_model.errors import EngineError
from mhc_model.gates import expand_gates
from mhc_model.request import Completion, FinishReason, Request, Timings
from mhc_model.row import Row
from mhc_model.sampling import sample
from mhc_model.tokenizer import Tokenizer

# Prompts are prefilled together up to this padded size: it bounds the memory of a step.
PREFILL_TOKENS = 16384


class Engine:
    """Token ids in, token ids out; see the module's docstring."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None = None,
        max_batch: int = 32,
        max_seq_len: int | None = None,
        checkpoint_hash: str | None = None,
    ) -> None:
        """Allocates the cache on the model's device.

        Args:
            model: stays where it is; put into eval mode.
            tokenizer: gives completions their text, stop strings their meaning, and the token at
                which a document ends.
            max_batch: rows of the cache; further requests wait.
            max_seq_len: positions of a row, prompt and completion; None takes the model's context.
            checkpoint_hash: the content hash of the weights, for results and logs.

        Raises:
            EngineError: if max_batch < 1 or max_seq_len is outside the context.
        """
        if max_batch < 1:
            raise EngineError(f"max_batch is {max_batch}; it must be at least 1")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.checkpoint_hash = checkpoint_hash
        self.device = model.embedding.weight.device
        self.cache = KVCache.allocate(
            model.config, max_batch, max_seq_len, self.device, model.embedding.weight.dtype
        )
        self.max_batch = max_batch
        self._waiting: deque[Row] = deque()
        self._active: list[Row] = []
        self._ids: set[str] = set()  # of all requests under way
        self._cancelled: set[str] = set()
        self._learned: Tensor | None = None
        if model.config.mhc is not None:
            self._learned = model.learned_gates().detach().cpu()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        max_batch: int = 32,
        max_seq_len: int | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> Engine:
        """An engine over a checkpoint or run directory; device "auto" is CUDA if there is one."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_checkpoint(path, device, dtype)
        return cls(loaded.model, loaded.tokenizer, max_batch, max_seq_len, loaded.content_hash)

    @property
    def max_seq_len(self) -> int:
        """Longest prompt and completion together, in tokens."""
        return self.cache.max_seq_len

    @property
    def has_work(self) -> bool:
        return bool(self._active or self._waiting)

    @property
    def active(self) -> int:
        """Requests that hold a row."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    def add(self, request: Request) -> str:
        """Queues a request; it joins the batch at one of the next steps.

        Returns:
            The request's id.

        Raises:
            EngineError: if the prompt is empty, has an unknown token id or does not fit with
                max_tokens into the context, the id is in use, or stop strings lack a tokenizer.
            GateError: if the gates are not what `expand_gates` takes, or the model is plain.
        """
        self._check(request)
        stop_ids = set(request.sampling.stop_token_ids)
        if self.tokenizer is not None:
            stop_ids.add(self.tokenizer.eos_id)
        self._ids.add(request.id)
        self._waiting.append(Row(request, self._gates_of(request), frozenset(stop_ids)))
        return request.id

    def cancel(self, request_id: str) -> bool:
        """Ends a request at the next step with finish_reason "cancelled"; False if unknown."""
        if request_id in self._ids:
            self._cancelled.add(request_id)
        return request_id in self._ids

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Runs requests to their end and returns their completions in the given order.

        Raises:
            EngineError, GateError: as `add`, and if others are under way; then none is queued.
        """
        ids = [request.id for request in requests]
        if len(set(ids)) < len(ids):
            raise EngineError("two requests of one call have the same id")
        if self.has_work:
            raise EngineError("generate() needs an idle engine; use add() and step() beside others")
        for request in requests:
            self._check(request)
        for request in requests:
            self.add(request)
        done: dict[str, Completion] = {}
        while self.has_work:
            done.update((completion.request_id, completion) for completion in self.step())
        return [done[request_id] for request_id in ids]

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Prefills what fits, decodes one token a row, and returns the requests that ended."""
        finished = self._drop_cancelled()
        decoding = len(self._active)
        if decoding:
            tokens = torch.tensor([[row.tokens[-1]] for row in self._active])
            self._advance(0, decoding, tokens, [1] * decoding)
        self._prefill()
        for position in reversed(range(len(self._active))):
            row = self._active[position]
            reason = row.finish_reason(self.tokenizer)
            if reason is not None:
                finished.append(self._complete(row, reason))
                self._remove(position)
        return finished

    def _check(self, request: Request) -> None:
        vocabulary = self.model.config.vocab_size
        if len(request.prompt) == 0:
            raise EngineError("the prompt is empty; give at least one token")
        for token in request.prompt:
            if not isinstance(token, Integral):
                raise EngineError(f"prompt token {token!r} is not a token id; encode text first")
            if not 0 <= token < vocabulary:
                raise EngineError(
                    f"prompt token {token} is outside the vocabulary of 0 to {vocabulary - 1}"
                )
        total = len(request.prompt) + request.sampling.max_tokens
        if total > self.max_seq_len:
            raise EngineError(
                f"{len(request.prompt)} prompt tokens and max_tokens "
                f"{request.sampling.max_tokens} make {total}; the context is {self.max_seq_len}"
            )
        if request.sampling.stop and self.tokenizer is None:
            raise EngineError("stop strings need a tokenizer; use stop_token_ids")
        if request.id in self._ids:
            raise EngineError(f"a request with the id {request.id!r} is under way")
        self._gates_of(request)

    def _gates_of(self, request: Request) -> Tensor | None:
        if self._learned is None:
            if request.gates is not None:
                self.model.learned_gates()  # raises: a plain model has no gates
            return None
        if request.gates is None:
            return self._learned
        return expand_gates(request.gates, self.model.config.n_layers)

    def _prefill(self) -> None:
        """Moves waiting requests into free rows, several prompts in one padded batch."""
        while self._waiting and len(self._active) < self.max_batch:
            joining: list[Row] = []
            longest = 0
            while self._waiting and len(self._active) + len(joining) < self.max_batch:
                candidate = len(self._waiting[0].request.prompt)
                padded = max(longest, candidate) * (len(joining) + 1)
                if joining and padded > PREFILL_TOKENS:
                    break
                longest = max(longest, candidate)
                joining.append(self._waiting.popleft())
            start = len(self._active)
            self._active.extend(joining)
            tokens = torch.zeros(len(joining), longest, dtype=torch.int64)
            for position, row in enumerate(joining):
                row.started = time.perf_counter()
                tokens[position, : len(row.request.prompt)] = torch.tensor(row.request.prompt)
            self.cache.lengths[start : len(self._active)] = 0
            self._advance(
                start, len(self._active), tokens, [len(row.request.prompt) for row in joining]
            )

    def _advance(self, start: int, stop: int, tokens: Tensor, counts: list[int]) -> None:
        """Feeds tokens (r, t) to the rows start .. stop and draws the next token of each.

        `counts` says how many of the t tokens are the row's own; the rest is padding.
        """
        rows = self._active[start:stop]
        cache = self.cache.slice(start, stop)
        before = cache.lengths.clone()
        gates = None
        if self._learned is not None:
            gates = torch.stack([row.gates for row in rows if row.gates is not None])
            gates = gates.to(self.device)
        hidden = self.model.hidden(tokens.to(self.device), gates, cache)
        own = torch.tensor(counts)
        cache.lengths.copy_(before + own)
        last = hidden[torch.arange(len(rows)), (own - 1).to(self.device)]
        logits = self.model.logits(last)
        drawn = sample(logits, *self._sampling_tensors(rows))
        logprobs = logits.log_softmax(dim=-1).gather(-1, drawn[:, None])[:, 0]
        now = time.perf_counter()
        for row, token, logprob in zip(rows, drawn.tolist(), logprobs.tolist(), strict=True):
            row.append(token, logprob, now)

    def _sampling_tensors(self, rows: list[Row]) -> tuple[Tensor, ...]:
        """temperature, top_k, top_p, seed and index of the rows, as `sample` takes them."""
        parameters = [row.request.sampling for row in rows]
        columns = (
            torch.tensor([p.temperature for p in parameters], dtype=torch.float32),
            torch.tensor([p.top_k for p in parameters]),
            torch.tensor([p.top_p for p in parameters], dtype=torch.float32),
            torch.tensor([p.seed for p in parameters]),
            torch.tensor([len(row.tokens) for row in rows]),
        )
        return tuple(column.to(self.device) for column in columns)

    def _drop_cancelled(self) -> list[Completion]:
        if not self._cancelled:
            return []
        finished = []
        cancelled = set(self._cancelled)
        for row in [row for row in self._waiting if row.request.id in cancelled]:
            self._waiting.remove(row)
            finished.append(self._complete(row, "cancelled"))
        for position in reversed(range(len(self._active))):
            row = self._active[position]
            if row.request.id in cancelled:
                finished.append(self._complete(row, "cancelled"))
                self._remove(position)
        return finished

    def _remove(self, position: int) -> None:
        """Frees a row; the last active row moves into it, so that the active ones stay in front."""
        last = len(self._active) - 1
        if position != last:
            self.cache.copy_row(last, position, int(self.cache.lengths[last]))
            self._active[position] = self._active[last]
        self._active.pop()
        self.cache.lengths[last] = 0

    def _complete(self, row: Row, reason: FinishReason) -> Completion:
        self._ids.discard(row.request.id)
        self._cancelled.discard(row.request.id)
        tokens, text = row.output(self.tokenizer)
        now = time.perf_counter()
        return Completion(
            request_id=row.request.id,
            index=0,
            top_logprobs=None,
            prompt_logprobs=None,
            cached_tokens=0,
            tokens=tokens,
            text=text,
            finish_reason=reason,
            logprobs=tuple(row.logprobs[: len(tokens)]) if row.request.sampling.logprobs else None,
            gates=None if row.gates is None else tuple(row.gates.tolist()),
            timings=Timings(
                queued_s=(row.started or now) - row.added,
                first_token_s=(row.first_token or now) - row.added,
                total_s=now - row.added,
            ),
        )
