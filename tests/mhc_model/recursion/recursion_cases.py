"""A language model that answers from a rule: what a session does can be worked out by hand."""

from __future__ import annotations

import re

from mhc_model.recursion import Generated, Prompts, Session, SessionSettings, TextIndex

PROMPTS = Prompts(query="{source}|{question}|", reduce="+{answers}|{question}|")


class Reader:
    """Counts words as tokens. Answers a source with its words that start with "fact", a reduction
    with all of them that the partial answers name, and "not found" where there is none."""

    embedder = None

    def __init__(self, context: int = 60) -> None:
        self.context = context
        self.batches: list[list[str]] = []
        self.before = lambda cancel: None

    def count_tokens(self, text):
        return len(text.split())

    def generate(self, prompts, max_tokens, stop, gates, cancel):
        self.before(cancel)
        cancel.check()
        self.batches.append(list(prompts))
        done = []
        for prompt in prompts:
            assert self.count_tokens(prompt) + max_tokens <= self.context
            found = sorted(set(re.findall(r"fact\w*", prompt.split("|")[0])))
            text = " ".join(found[:max_tokens]) or "not found"
            done.append(Generated(text, self.count_tokens(prompt), self.count_tokens(text)))
        return done


def settings(**fields) -> SessionSettings:
    values = {"budget_tokens": 10_000, "max_tokens": 6, "prompts": PROMPTS, "k": 2}
    return SessionSettings.model_validate({**values, **fields})


def open_session(text: str, reader: Reader, **fields) -> Session:
    cancel, listener = fields.pop("cancel", None), fields.pop("listener", None)
    return Session(
        TextIndex(text, 120, 30), reader, settings(**fields), cancel=cancel, listener=listener
    )


def filler(n: int) -> str:
    return " ".join(f"w{i}" for i in range(n))


LONG = f"{filler(100)} factA {filler(200)} factB {filler(150)} factC {filler(50)}"


SIX_WORDS = [" ".join(f"fact{i}{letter}" for letter in "abcdef") for i in range(8)]
