"""OpenAI's completions and chat completions over one engine.

In: a request's body. Out: the engine's requests with their gates; what becomes of them, as one
response or a stream of events. May import mhc_model, errors and monitoring.

A request's way:

    fields.py         kinds of fields, and what all bodies have in common
    schemas.py        bodies and responses of completions
    structures.py     the form that an answer is to have
    chat_schemas.py   those of chat completions
    chat_template/    from a conversation to a prompt
    gates.py          gates of a body: their forms, the numbers behind them, where these come from
    prepare.py        from a body to the engine's requests: tokens, gates, sampling
    batcher.py        the thread that drives the engine for all callers
    calls.py          one call to it as a coroutine sees it: events, deadline, client
    logprobs.py       tokens and log-probabilities in OpenAI's two forms
    responses.py      completions and deltas as responses and chunks
    streaming.py      chunks as server-sent events
"""

from serve.completions.batcher import SHUTTING_DOWN, Batcher, post_to_loop
from serve.completions.calls import EngineCall, on_disconnect
from serve.completions.chat_schemas import ChatFields, ChatRequest, ChatResponse
from serve.completions.chat_template import ChatTemplate
from serve.completions.fields import Body, TokenIds
from serve.completions.gates import (
    GATES_FORMS,
    BehaviourCard,
    ChosenGates,
    Gates,
    GatesSource,
    behaviour_cards,
)
from serve.completions.logprobs import TokenNames
from serve.completions.prepare import Prepared, Preparer
from serve.completions.responses import (
    ChatWriter,
    CompletionWriter,
    ModelIdentity,
    ResponseWriter,
)
from serve.completions.schemas import (
    CompletionRequest,
    CompletionResponse,
    Health,
    ModelCard,
    ModelList,
    Ready,
    Version,
)
from serve.completions.streaming import EventStream

__all__ = [
    "GATES_FORMS",
    "SHUTTING_DOWN",
    "Batcher",
    "BehaviourCard",
    "Body",
    "ChatFields",
    "ChatRequest",
    "ChatResponse",
    "ChatTemplate",
    "ChatWriter",
    "ChosenGates",
    "CompletionRequest",
    "CompletionResponse",
    "CompletionWriter",
    "EngineCall",
    "EventStream",
    "Gates",
    "GatesSource",
    "Health",
    "ModelCard",
    "ModelIdentity",
    "ModelList",
    "Prepared",
    "Preparer",
    "Ready",
    "ResponseWriter",
    "TokenIds",
    "TokenNames",
    "Version",
    "behaviour_cards",
    "on_disconnect",
    "post_to_loop",
]
