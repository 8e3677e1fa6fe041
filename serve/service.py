"""What the routes do: a request becomes engine requests with gates, completions become a response.

No HTTP server and no Ray in here: `CompletionService` runs wherever an `Engine` does.
"""

from __future__ import annotations

import asyncio
import codecs
import secrets
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus

from torch import Tensor

from mhc_model.engine import Engine
from mhc_model.errors import ConfigError, GateError
from mhc_model.gates import expand_gates
from mhc_model.policy import GatePolicy
from mhc_model.request import Completion, Request, SamplingParams
from mhc_model.tokenizer import Tokenizer
from serve.batcher import Batcher
from serve.errors import APIError, unavailable
from serve.schemas import (
    Choice,
    CompletionRequest,
    CompletionResponse,
    GatesSource,
    Health,
    Logprobs,
    ModelCard,
    ModelList,
    Usage,
)


class CompletionService:
    """Answers requests with one engine. Close it to end the engine's thread."""

    def __init__(
        self,
        engine: Engine,
        model_name: str,
        max_queue: int = 256,
        policy: GatePolicy | None = None,
        aliases: Sequence[str] = (),
    ) -> None:
        """Takes over the engine.

        Args:
            engine: of a checkpoint with a tokenizer.
            model_name: what the API calls the model.
            max_queue: prompts that may wait besides those being decoded.
            policy: chooses the gates where a request says "policy".
            aliases: further names that requests may give, such as the checkpoint's path.

        Raises:
            ConfigError: if the engine has no tokenizer or no checkpoint, or the policy was trained
                on another checkpoint.
        """
        if engine.tokenizer is None or engine.checkpoint_hash is None:
            raise ConfigError(
                "the served engine needs a tokenizer and a checkpoint hash; save the checkpoint "
                "with its tokenizer and load it with Engine.from_checkpoint"
            )
        if policy is not None:
            check_policy(policy, engine.checkpoint_hash)
        self._tokenizer: Tokenizer = engine.tokenizer
        self._checkpoint: str = engine.checkpoint_hash
        self._model = engine.model
        self._max_seq_len = engine.max_seq_len
        self._policy = policy
        self._name = model_name
        self._names = {model_name, self._checkpoint, *aliases}
        self._created = int(time.time())
        self._batcher = Batcher(engine, max_queue)

    def close(self) -> None:
        """Ends the engine's thread; calls under way fail with a 503."""
        self._batcher.close()

    @property
    def failure(self) -> str | None:
        """Why the engine no longer runs; None while it does."""
        return self._batcher.failure

    async def complete(self, body: CompletionRequest) -> CompletionResponse:
        """Answers POST /v1/completions.

        Cancelling the task that awaits this frees the rows of its prompts.

        Raises:
            APIError, GateError, EngineError, DataError: all of them have an HTTP form
                (`serve.errors.as_api_error`).
        """
        self._check_model(body.model)
        self._check_count(body)
        # Tokenising and the policy take milliseconds of CPU: not on the event loop.
        prompts, gates, source = await asyncio.to_thread(self._prepare, body)
        requests = [
            Request(prompt, gates=row, sampling=self._sampling(body))
            for prompt, row in zip(prompts, gates, strict=True)
        ]
        completions = await asyncio.wrap_future(self._batcher.submit(requests))
        return self._response(prompts, completions, source)

    def models(self) -> ModelList:
        """Answers GET /v1/models."""
        config = self._model.config
        card = ModelCard(
            id=self._name,
            created=self._created,
            checkpoint=self._checkpoint,
            max_model_len=self._max_seq_len,
            n_layers=config.n_layers,
            n_gates=config.n_gates,
            learned_gates=None if config.mhc is None else self._model.learned_gates().tolist(),
            policy=self._policy is not None,
        )
        return ModelList(data=[card])

    def health(self) -> Health:
        """Answers GET /health.

        Raises:
            APIError: 503 if the engine does not run.
        """
        if self.failure is not None:
            raise unavailable(self.failure)
        active = self._batcher.active
        return Health(
            model=self._name,
            checkpoint=self._checkpoint,
            active=active,
            waiting=max(0, self._batcher.pending - active),
        )

    def _check_model(self, name: str | None) -> None:
        if name is not None and name not in self._names:
            raise APIError(
                HTTPStatus.NOT_FOUND,
                f"model {name!r} is not served here; use {self._name!r} or leave the field out",
                "model",
                "model_not_found",
            )

    def _check_count(self, body: CompletionRequest) -> None:
        if len(body.prompt) > self._batcher.capacity:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                f"{len(body.prompt)} prompts in one request; the server holds "
                f"{self._batcher.capacity} at a time: send fewer in a request",
                "prompt",
            )

    def _prepare(
        self, body: CompletionRequest
    ) -> tuple[list[list[int]], list[Tensor | None], GatesSource | None]:
        """Token ids and gates of every prompt, and where the gates come from."""
        prompts = [self._tokens(prompt) for prompt in body.prompt]
        for prompt in prompts:
            self._check_prompt(prompt, body.max_tokens)
        return prompts, *self._gates(body.gates, prompts)

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        """Text starts a document, as in training; token ids are taken as they are."""
        return self._tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt

    def _check_prompt(self, prompt: Sequence[int], max_tokens: int) -> None:
        """Before the policy reads embeddings by these ids, and long before the engine checks."""
        vocabulary = self._model.config.vocab_size
        unknown = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                f"prompt token {unknown} is outside the vocabulary of 0 to {vocabulary - 1}",
                "prompt",
            )
        total = len(prompt) + max_tokens
        if total > self._max_seq_len:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                f"{len(prompt)} prompt tokens and max_tokens {max_tokens} make {total}; the "
                f"context is {self._max_seq_len} tokens: shorten the prompt or lower max_tokens",
                "max_tokens",
                "context_length_exceeded",
            )

    def _gates(
        self, wanted: object, prompts: list[list[int]]
    ) -> tuple[list[Tensor | None], GatesSource | None]:
        """Gates of every prompt, each (2L,) or None for the learned ones, and their source."""
        config = self._model.config
        learned: list[Tensor | None] = [None] * len(prompts)
        if config.mhc is None:
            if wanted is not None:
                raise GateError("this model is plain (mhc: null) and has no gates; leave them out")
            return learned, None
        if wanted is None or wanted == "learned":
            return learned, "learned"
        if wanted == "policy":
            if self._policy is None:
                raise APIError(
                    HTTPStatus.BAD_REQUEST,
                    "this server has no gate policy; start it with --policy DIR, or give numbers "
                    'or "learned"',
                    "gates",
                    "no_policy",
                )
            return list(self._policy.gates_for_prompts(self._model, prompts)), "policy"
        try:
            row = expand_gates(wanted, config.n_layers)  # type: ignore[arg-type]  # it checks
        except GateError as error:
            raise GateError(f'{error}; or "learned", or "policy"') from None
        return [row] * len(prompts), "request"

    def _sampling(self, body: CompletionRequest) -> SamplingParams:
        return SamplingParams(
            max_tokens=body.max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            stop=body.stop,
            logprobs=body.logprobs is not None,
        )

    def _response(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Completion],
        source: GatesSource | None,
    ) -> CompletionResponse:
        choices = [self._choice(index, done) for index, done in enumerate(completions)]
        rows = {completion.gates for completion in completions}
        prompt_tokens = sum(len(prompt) for prompt in prompts)
        completion_tokens = sum(len(completion.tokens) for completion in completions)
        return CompletionResponse(
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self._name,
            choices=choices,
            usage=Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                total_tokens=prompt_tokens + completion_tokens,
            ),
            gates=choices[0].gates if len(rows) == 1 else None,
            gates_source=source,
            checkpoint=self._checkpoint,
        )

    def _choice(self, index: int, completion: Completion) -> Choice:
        if completion.text is None or completion.finish_reason == "cancelled":
            raise unavailable(f"the completion was ended ({completion.finish_reason}); try again")
        return Choice(
            index=index,
            text=completion.text,
            finish_reason=completion.finish_reason,
            logprobs=self._logprobs(completion),
            gates=None if completion.gates is None else list(completion.gates),
        )

    def _logprobs(self, completion: Completion) -> Logprobs | None:
        if completion.logprobs is None:
            return None
        # A character may take several tokens: it counts for the token that completes it.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(completion.tokens) - 1
        pieces = [
            decoder.decode(self._tokenizer.token_bytes(token), final=position == last)
            for position, token in enumerate(completion.tokens)
        ]
        offsets = [0]
        for piece in pieces[:-1]:
            offsets.append(offsets[-1] + len(piece))
        return Logprobs(
            tokens=pieces,
            token_logprobs=list(completion.logprobs),
            text_offset=offsets[: len(pieces)],
        )


def check_policy(policy: GatePolicy, checkpoint_hash: str) -> None:
    """Refuses a policy that was trained on other weights: its observations would mean nothing.

    Raises:
        ConfigError: naming both hashes.
    """
    trained_on = policy.config.checkpoint_hash or "unknown"
    if trained_on != checkpoint_hash:
        raise ConfigError(
            f"the gate policy was trained on checkpoint {trained_on}, the served one is "
            f"{checkpoint_hash}; serve that checkpoint or train a policy on this one"
        )
