"""What every engine does with requests, whatever computes their tokens.

`Engine` (mhc_model/engine.py) decodes with torch, `VLLMEngine` (mhc_model/vllm_plugin/engine.py)
with vLLM. Both take the same requests, refuse the same with the same words, and give the same
completions and deltas.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from mhc_model.config import MAX_SAMPLES
from mhc_model.decoder import Decoder
from mhc_model.engine.grammar import Grammars, Matcher
from mhc_model.engine.request import (
    Completion,
    Delta,
    EngineStats,
    FinishReason,
    Request,
    SamplingParams,
)
from mhc_model.engine.row import Row
from mhc_model.errors import EngineError
from mhc_model.gates import PhaseGates, resolve_gates
from mhc_model.tokenizer import Tokenizer


class EngineBase(ABC):
    """Token ids in, token ids out. One thread drives an engine.

    Attributes:
        model: the decoder, with the weights that the engine uses.
        tokenizer: None for token ids only.
        checkpoint_hash: the content hash of the weights.
        device: of the model.
        max_batch: samples that are decoded at a time.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None,
        max_batch: int,
        checkpoint_hash: str | None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.checkpoint_hash = checkpoint_hash
        self.device: torch.device = model.embedding.weight.device
        self.max_batch = max_batch
        self._samples: dict[str, int] = {}  # of all requests under way, those not finished
        self._cancelled: set[str] = set()
        self._deltas: list[Delta] = []
        self._stats = EngineStats()
        self.grammars = None if tokenizer is None else Grammars(tokenizer, model.config.vocab_size)
        self._learned: Tensor | None = None
        if model.config.gateless is None:
            self._learned = model.learned_gates().detach().cpu()

    @property
    @abstractmethod
    def max_seq_len(self) -> int:
        """Longest prompt and completion together, in tokens."""

    @property
    @abstractmethod
    def active(self) -> int:
        """Samples that hold a row."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Samples that wait for a row."""

    @property
    def has_work(self) -> bool:
        return self.waiting > 0 or self.active > 0

    @abstractmethod
    def stats(self) -> EngineStats:
        """What the engine does now, and its counters."""

    @abstractmethod
    def step(self) -> list[Completion]:
        """Decodes one token a row, reads a chunk of prompts, and returns the samples that ended."""

    @abstractmethod
    def clear_prefix_cache(self) -> None:
        """Forgets the beginnings of prompts, as is needed after a change of the weights."""

    @abstractmethod
    def _enqueue(self, row: Row) -> None:
        """Takes a sample whose request was checked."""

    @abstractmethod
    def _release(self, row: Row) -> None:
        """Frees what a sample holds; it may also be one that waited."""

    def add(self, request: Request) -> str:
        """Queues a request; its samples join the batch at one of the next steps.

        Returns:
            The request's id.

        Raises:
            EngineError: if the prompt is empty, has an unknown token id or does not fit with
                max_tokens into the context, the id is in use, n is not 1 to 128, stop strings or a
                form lack a tokenizer, a form is malformed, or biases or allowed ids are none of
                the vocabulary or leave nothing to draw.
            GateError: if the gates are not what `resolve_gates` takes, or the model is plain.
        """
        self._check(request)
        gates = self._gates_of(request)
        stop_ids = set(request.sampling.stop_token_ids)
        sampling = request.sampling
        # A form may end with nothing but a document's end.
        if self.tokenizer is not None and (not sampling.ignore_eos or sampling.structure):
            stop_ids.update(self.tokenizer.eos_ids)
        first = self._matcher(request)
        matchers = [None if first is None else first.copy() for _ in range(request.n)]
        rows = [
            Row(request, i, gates.prompt, frozenset(stop_ids), gates.answer, matcher)
            for i, matcher in enumerate(matchers)
        ]
        self._samples[request.id] = request.n
        for row in rows:
            self._enqueue(row)
        return request.id

    def cancel(self, request_id: str) -> bool:
        """Ends a request at the next step with finish_reason "cancelled"; False if unknown."""
        if request_id in self._samples:
            self._cancelled.add(request_id)
        return request_id in self._samples

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Runs requests to their end.

        Returns:
            The completions in the order of the requests, and of the samples of each.

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
        done: dict[tuple[str, int], Completion] = {}
        while self.has_work:
            done.update(((each.request_id, each.index), each) for each in self.step())
        return [done[request.id, index] for request in requests for index in range(request.n)]

    def take_deltas(self) -> list[Delta]:
        """What the samples of streamed requests have gained since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

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
        total = len(request.prompt) + request.sampling.places
        if total > self.max_seq_len:
            raise EngineError(
                f"{len(request.prompt)} prompt tokens and max_tokens "
                f"{request.sampling.max_tokens} make {total}; the context is {self.max_seq_len}"
            )
        if not isinstance(request.n, Integral) or not 1 <= request.n <= MAX_SAMPLES:
            raise EngineError(
                f"n is {request.n!r}; it must be a whole number of 1 to {MAX_SAMPLES}"
            )
        if request.sampling.stop and self.tokenizer is None:
            raise EngineError("stop strings need a tokenizer; use stop_token_ids")
        self._check_shaping(request.sampling)
        if request.id in self._samples:
            raise EngineError(f"a request with the id {request.id!r} is under way")
        self._gates_of(request)

    def _check_shaping(self, sampling: SamplingParams) -> None:
        vocabulary = self.model.config.vocab_size
        allowed = sampling.allowed_token_ids
        for name, tokens in (("logit_bias", sampling.logit_bias), ("allowed_token_ids", allowed)):
            for token in tokens or ():
                if not isinstance(token, Integral) or not 0 <= token < vocabulary:
                    raise EngineError(
                        f"{name} has the token {token!r}, which is outside the vocabulary of 0 to "
                        f"{vocabulary - 1}"
                    )
        ends = set(sampling.stop_token_ids)
        if self.tokenizer is not None and not sampling.ignore_eos:
            ends.update(self.tokenizer.eos_ids)
        if allowed is not None and sampling.min_tokens and ends.issuperset(allowed):
            raise EngineError(
                f"allowed_token_ids {list(allowed)} are all ends of the completion, which "
                f"min_tokens {sampling.min_tokens} forbids at first: no token could be drawn"
            )
        if sampling.structure is not None and self.tokenizer is None:
            raise EngineError("a form of the answer needs a tokenizer; leave it out")

    def _matcher(self, request: Request) -> Matcher | None:
        structure = request.sampling.structure
        if structure is None or self.grammars is None:
            return None
        return self.grammars.matcher(structure)

    def _gates_of(self, request: Request) -> PhaseGates:
        phases = resolve_gates(request.gates, self.model.config)
        return PhaseGates(*(self._learned if phase is None else phase for phase in phases))

    # How a sample ends

    def _stream(self, row: Row, final: bool) -> None:
        if row.request.stream:
            delta = row.take_delta(final)
            if delta is not None:
                self._deltas.append(delta)

    def _complete(self, row: Row, reason: FinishReason) -> Completion:
        self._release(row)
        self._samples[row.request.id] -= 1
        if self._samples[row.request.id] == 0:
            del self._samples[row.request.id]
            self._cancelled.discard(row.request.id)
        cancelled = reason == "cancelled"
        self._count(cancelled=int(cancelled), finished=int(not cancelled))
        return row.complete(reason, self.tokenizer)

    def _count(self, **more: int) -> None:
        counted = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = dataclasses.replace(self._stats, **counted)
