"""From a request's body to the engine's requests: tokens, gates, sampling, and what is refused."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from jinja2 import TemplateError

from mhc_model.engine import EngineBase, Request, SamplingParams
from mhc_model.policy import GatePolicy
from mhc_model.tokenizer import Tokenizer
from serve.completions.chat_schemas import ChatFields, ChatRequest
from serve.completions.chat_template import ChatOptions, ChatPrompt, ChatTemplate
from serve.completions.gates import ChosenGates, GateChooser
from serve.completions.schemas import CompletionRequest, GenerationRequest
from serve.errors import APIError

# Characters beyond those that can be kept of a text that is cut: tokens near a cut may differ.
MARGIN = 1000


@dataclass(frozen=True)
class Prepared:
    """The engine's requests, one a prompt, and what the answer says of them.

    Attributes:
        requests: in the order of the prompts.
        gates: of each prompt, and where they come from.
        starts: where in each prompt the caller's own text begins: behind the special token that
            the server put before a text.
        opens_text: the space with which an answer goes on is none of it; see `ChatPrompt`.
    """

    requests: list[Request]
    gates: ChosenGates
    starts: list[int]
    opens_text: bool = False

    @property
    def samples(self) -> int:
        return sum(request.n for request in self.requests)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)


class Preparer:
    """Does the CPU work before a request reaches the engine; safe to call from any thread."""

    def __init__(
        self,
        engine: EngineBase,
        tokenizer: Tokenizer,
        capacity: int,
        policy: GatePolicy | None,
        template: ChatTemplate,
    ) -> None:
        """Reads what it needs of the engine, which another thread may drive already.

        Args:
            engine: whose model and context the requests are for.
            tokenizer: of its model.
            capacity: most samples of a request.
            policy: for gates "policy".
            template: of conversations.
        """
        self._config = engine.model.config
        self._grammars = engine.grammars
        self._context = engine.max_seq_len
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._gates = GateChooser(engine.model, policy)
        self._template = template
        longest = int(tokenizer.token_byte_lengths().max())
        self._max_characters = longest * self._context

    def completion(self, body: CompletionRequest) -> Prepared:
        """Prepares POST /v1/completions.

        Raises:
            APIError, GateError, EngineError, DataError: all of them are the caller's fault.
        """
        self._check_count(len(body.prompt), body.samples)
        room = self._context - body.max_tokens
        read = [self._completion_tokens(body, prompt, room) for prompt in body.prompt]
        prompts, starts = [tokens for tokens, _ in read], [start for _, start in read]
        for prompt in prompts:
            self._check_tokens(prompt)
        sampling = [self._completion_sampling(body, prompt) for prompt in prompts]
        for prompt, parameters in zip(prompts, sampling, strict=True):
            self._check_context(len(prompt), parameters.places)
        return self._prepared(body, prompts, sampling, starts)

    def chat(self, body: ChatRequest) -> Prepared:
        """Prepares POST /v1/chat/completions; raises as `completion`."""
        self._check_count(1, body.n)
        if body.truncate_prompt_tokens is None:
            self._check_characters(sum(len(each.content or "") for each in body.messages))
        conversation = self.conversation(body)
        wanted = body.max_tokens or body.max_completion_tokens
        prompt = self._cut(body, conversation.tokens, 0, self._context - (wanted or 1))
        self._check_tokens(prompt)
        max_tokens = wanted or max(1, self._context - len(prompt))
        self._check_context(len(prompt), max_tokens)
        sampling = SamplingParams(
            max_tokens=max_tokens,
            logprobs=body.logprobs,
            top_logprobs=max(body.top_logprobs or 0, body.prompt_logprobs or 0),
            prompt_logprobs_from=None if body.prompt_logprobs is None else 0,
            ignore_eos=body.ignore_eos,
            **self._sampling(body, self._template.stop),
        )
        prepared = self._prepared(body, [prompt], [sampling], [0])
        return dataclasses.replace(prepared, opens_text=conversation.opens_text)

    def conversation(self, body: ChatFields) -> ChatPrompt:
        """The prompt of a conversation, of any length.

        Raises:
            APIError, DataError: all of them are the caller's fault.
        """
        variables = dict(body.chat_template_kwargs or {})
        if body.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", body.reasoning_effort)
        options = ChatOptions(
            add_generation_prompt=(
                body.add_generation_prompt is not False and not body.continue_final_message
            ),
            continue_final_message=body.continue_final_message,
            add_special_tokens=body.add_special_tokens,
            tools=body.tools or None,
            documents=body.documents,
            variables=variables,
        )
        messages = [message.for_template() for message in body.messages or ()]
        try:
            return self._template.prompt(messages, self._tokenizer, options)
        except TemplateError as error:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                f"the chat template refuses these messages: {error}",
                "messages",
            ) from None

    def text(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text of any length."""
        return self._tokenizer.encode(text, bos=add_special_tokens)

    def prompt_and_gates(
        self, prompt: str | list[int], gates: object
    ) -> tuple[list[int], ChosenGates]:
        """Tokens of one prompt, and the gates under which it is read.

        Raises:
            APIError, GateError, DataError: all of them are the caller's fault.
        """
        tokens = prompt if isinstance(prompt, list) else self._text_tokens(prompt)
        self._check_tokens(tokens)
        self._check_context(len(tokens), 0)
        return tokens, self._gates.choose(gates, [tokens]).of_prompts

    def _prepared(
        self,
        body: GenerationRequest,
        prompts: list[list[int]],
        sampling: list[SamplingParams],
        starts: list[int],
    ) -> Prepared:
        gates = self._gates.choose(body.gates, prompts)
        if body.structure is not None and self._grammars is not None:
            # Here, not on the engine's thread.
            self._grammars.prepare(body.structure, len(prompts))
        requests = [
            Request(prompt, gates=row, sampling=parameters, n=body.samples, stream=body.stream)
            for prompt, row, parameters in zip(prompts, gates.for_engine, sampling, strict=True)
        ]
        return Prepared(requests=requests, gates=gates, starts=starts)

    def _completion_tokens(
        self, body: CompletionRequest, prompt: str | list[int], room: int
    ) -> tuple[list[int], int]:
        """A prompt's tokens, and how many of them the server put before the caller's own.

        Text starts a document, as in training: with the token that the model's texts begin with,
        if they begin with one. Token ids are taken as they are.
        """
        if isinstance(prompt, list):
            return self._cut(body, prompt, 0, room), 0
        starts = body.add_special_tokens is not False
        if body.truncate_prompt_tokens is None:
            tokens = self._text_tokens(prompt, starts)
        else:
            tokens = self.text(self._near(body, prompt), starts)
        start = int(starts and self._tokenizer.bos_id is not None)
        return self._cut(body, tokens, start, room), start

    def _text_tokens(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self._check_characters(len(text))
        return self.text(text, add_special_tokens)

    def _near(self, body: GenerationRequest, text: str) -> str:
        """As much of a text as may be kept of it: the tokenizer need not read all."""
        most = self._max_characters + MARGIN
        return text[:most] if body.truncation_side == "right" else text[-most:]

    def _cut(self, body: GenerationRequest, tokens: list[int], start: int, room: int) -> list[int]:
        """At most `truncate_prompt_tokens` of a prompt, its `start` first tokens in any case."""
        most = body.truncate_prompt_tokens
        if most is None:
            return tokens
        if most > room:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                f"truncate_prompt_tokens is {most}; beside max_tokens the context of "
                f"{self._context} tokens has room for {max(0, room)}",
                "truncate_prompt_tokens",
            )
        most = room if most == -1 else most
        if len(tokens) <= max(0, most):
            return tokens
        own = max(0, most - start)
        if body.truncation_side == "right":
            return tokens[: start + own]
        return tokens[:start] + tokens[len(tokens) - own :]

    def _check_count(self, prompts: int, n: int) -> None:
        if prompts * n > self._capacity:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                f"{prompts} prompts with n = {n} make {prompts * n} samples in one request; the "
                f"server holds {self._capacity} at a time: send fewer in a request",
                "prompt" if prompts > 1 else "n",
            )

    def _check_characters(self, count: int) -> None:
        """Spares the tokenizer what cannot fit: a token has so many bytes at most."""
        if count > self._max_characters:
            raise _too_long(f"a prompt of {count} characters", self._context, "prompt")

    def _check_tokens(self, prompt: Sequence[int]) -> None:
        """Before the policy reads embeddings by these ids, and long before the engine checks."""
        if not prompt:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                "the prompt is empty, and this model's texts begin with no token of their own; "
                "give at least one token",
                "prompt",
            )
        vocabulary = self._config.vocab_size
        unknown = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                f"prompt token {unknown} is outside the vocabulary of 0 to {vocabulary - 1}",
                "prompt",
            )

    def _check_context(self, prompt: int, max_tokens: int) -> None:
        total = prompt + max_tokens
        if total > self._context:
            what = f"{prompt} prompt tokens and max_tokens {max_tokens} make {total}"
            raise _too_long(what, self._context, "max_tokens")

    def _completion_sampling(
        self, body: CompletionRequest, prompt: Sequence[int]
    ) -> SamplingParams:
        scores = body.echo and body.logprobs is not None
        scored_from = 0 if scores or body.prompt_logprobs is not None else None
        if body.max_tokens == 0 and scored_from is None:
            scored_from = len(prompt) - 1  # the engine wants a purpose
        return SamplingParams(
            max_tokens=body.max_tokens,
            logprobs=body.logprobs is not None or body.samples > body.n,
            top_logprobs=max(body.logprobs or 0, body.prompt_logprobs or 0),
            prompt_logprobs_from=scored_from,
            # Harnesses that score a prompt ask for one token more and drop the last entry,
            # whatever it is: it must be there, also where the model would end the document.
            ignore_eos=body.ignore_eos or (scores and body.max_tokens == 1),
            **self._sampling(body),
        )

    def _sampling(self, body: GenerationRequest, stop: Sequence[str] = ()) -> dict[str, Any]:
        random = body.seed is None or body.seed == -1
        return {
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": max(0, body.top_k),
            "min_p": body.min_p,
            "seed": secrets.randbits(63) if random else (body.seed or 0) & (2**63 - 1),
            "stop": (*body.stop, *stop),
            "stop_token_ids": body.stop_token_ids,
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
            "repetition_penalty": body.repetition_penalty,
            "logit_bias": body.logit_bias or None,
            "allowed_token_ids": body.allowed_token_ids,
            "min_tokens": body.min_tokens,
            "prompt_ranks": body.prompt_logprobs is not None,
            "structure": body.structure,
        }


def _too_long(what: str, context: int, param: str) -> APIError:
    return APIError(
        HTTPStatus.BAD_REQUEST,
        f"{what}; the context is {context} tokens: shorten the prompt or lower max_tokens",
        param,
        "context_length_exceeded",
    )
