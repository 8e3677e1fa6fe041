"""Log-likelihoods of continuations through the engine, tokenized as lm-evaluation-harness does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mhc_model.engine import Completion, Request, SamplingParams
from mhc_model.gates import RequestGates
from mhc_model.tokenizer import Tokenizer


class Pair(NamedTuple):
    """Token ids of a context (document separator included) and of its continuation."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    """How likely a continuation is.

    Attributes:
        logprob: the sum over its tokens.
        greedy: whether each token is the likeliest one at its place.
    """

    logprob: float
    greedy: bool


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, bos: bool = True) -> Pair:
    """Both texts as the harness encodes them.

    The two are encoded together and cut where the context alone ends; spaces at the end of the
    context go to the continuation. With an empty context the document separator stands for it.

    Args:
        tokenizer: the model's.
        context: may be empty.
        continuation: with the space before it, if there is to be one.
        bos: put the document separator in front.
    """
    if not context:
        return Pair([tokenizer.start_id], tokenizer.encode(continuation))
    kept = context.rstrip()
    head = tokenizer.encode(kept, bos=bos)
    whole = tokenizer.encode(context + continuation, bos=bos)
    return Pair(head, whole[len(head) :])


def likelihood_request(
    pair: Pair, gates: RequestGates, max_seq_len: int, request_id: str
) -> Request | None:
    """Asks for the log-probabilities of a continuation and nothing else.

    A context that is too long loses its start. Returns None where the continuation is empty or
    alone too long, so that no token would stand before it. What is scored is part of the prompt:
    of gates for prompt and answer the prompt's count.
    """
    tokens = (pair.context + pair.continuation)[-max_seq_len:]
    start = len(tokens) - len(pair.continuation)
    if start < 1 or not pair.continuation:
        return None
    sampling = SamplingParams(max_tokens=0, prompt_logprobs_from=start, top_logprobs=1)
    return Request(tokens, gates, sampling, request_id)


def read_likelihood(request: Request, completion: Completion) -> Likelihood:
    """What the completion of a `likelihood_request` says."""
    found = completion.prompt_logprobs
    start = request.sampling.prompt_logprobs_from
    assert found is not None  # it was asked for
    assert start is not None
    tokens: Sequence[int] = request.prompt[start:]
    logprobs = [logprob for logprob in found.logprobs if logprob is not None]
    greedy = all(token == top[0][0] for token, top in zip(tokens, found.top, strict=True))
    return Likelihood(sum(logprobs), greedy)
