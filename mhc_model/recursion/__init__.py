"""Questions about texts far longer than the context: verbs, recursion, a budget, a transcript.

In: a text, a question or a program of verbs, and a language model. Out: an `Answer`, and every
`Step` that led to it. May import the ground, tokenizer, decoder, engine and policy.

    search/        passages of a text, found by words and by meaning
    model.py       the language model: an interface, and our engine behind it
    endpoint.py    the same over HTTP, at an OpenAI-compatible server
    settings.py    limits, prompts, what counts as an answer
    transcript.py  answers and steps
    calls.py       calls of the model within a budget
    verbs.py       peek, search, chunks, query, map, reduce
    strategy.py    what `ask` does: search, read, widen, reduce
    session.py     `Session`: the verbs, and `ask`
    program.py     programs of verbs, never run by Python; functions.py has what they may call

Names are loaded when they are first used: a command that only reads `SessionSettings` needs no
torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
