"""Sessions: recursion, budget, depth, cancelling and the transcript.

`Reader` is a language model that answers from a rule, so that what a session does with answers can
be worked out by hand; the last tests run a real engine.
"""

from __future__ import annotations

import json
import re
import threading

import pytest

from mhc_model import Decoder, Engine, GateError, ModelConfig
from mhc_model.errors import BudgetError, CancelledError, EngineError, SessionError
from mhc_model.recursion import (
    CancelToken,
    EngineModel,
    Generated,
    Prompts,
    Session,
    SessionSettings,
    TextIndex,
    index_for,
)
from mhc_model.recursion.settings import answered
from mhc_model.tokenizer import Tokenizer

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


def test_a_text_that_fits_is_asked_at_once():
    reader = Reader()
    session = open_session(f"{filler(10)} factA", reader)
    assert session.ask("which fact?").text == "factA"
    assert [step.verb for step in session.transcript.steps] == ["query", "ask"]
    assert len(reader.batches) == 1


def test_a_source_beyond_the_context_is_cut_asked_in_one_batch_and_reduced():
    reader = Reader()
    session = open_session(LONG, reader)
    assert session.query("which?", (0, len(LONG))) == "factA factB factC"
    # One batch for all chunks; another for the three partial answers.
    assert len(reader.batches) == 2
    assert len(reader.batches[0]) > 8
    assert reader.batches[1] == ["+- factA\n- factB\n- factC|which?|"]
    reduce, query = session.transcript.steps
    assert (reduce.verb, reduce.depth, query.verb, query.depth) == ("reduce", 1, "query", 0)


def test_map_reads_sources_of_all_sizes_in_one_batch():
    reader = Reader()
    session = open_session(LONG, reader)
    answers = session.map("which?", [(0, len(LONG)), "factX here", "nothing here", (0, 20)])
    assert answers == ["factA factB factC", "factX", "not found", "not found"]
    assert len(reader.batches) == 2


def test_partial_answers_that_do_not_fit_are_reduced_in_levels():
    reader = Reader(context=24)
    session = open_session(LONG, reader)
    session.reduce("which?", SIX_WORDS)
    # 18 tokens of prompt hold two answers of six words: 8 -> 4 -> 2 -> 1, a batch a level.
    assert [len(batch) for batch in reader.batches] == [4, 2, 1]
    assert [step.depth for step in session.transcript.steps] == [2, 1, 0]


def test_reduce_calls_nothing_where_one_answer_is_left():
    reader = Reader()
    session = open_session(LONG, reader)
    assert session.reduce("q", ["not found", "Paris.", "paris", ""]) == "Paris."
    assert session.reduce("q", ["not found"]) == "not found"
    assert reader.batches == []


def test_a_reduction_that_finds_nothing_does_not_lose_what_was_found():
    session = open_session(LONG, Reader())
    assert session.reduce("q", ["the red one", "the blue one"]) == "the red one"


def test_depth_is_bounded():
    session = open_session(LONG, Reader(), max_depth=0)
    with pytest.raises(SessionError, match="max_depth 0"):
        session.query("which?", (0, len(LONG)))
    with pytest.raises(SessionError, match="max_depth 1"):
        open_session(LONG, Reader(24), max_depth=1).reduce("q", SIX_WORDS)


def test_the_budget_is_checked_before_the_call():
    reader = Reader()
    session = open_session(LONG, reader, budget_tokens=30)
    session.query("which?", "some factA text")  # 3 tokens of prompt and 1 of answer
    assert session.usage.total_tokens == 4
    with pytest.raises(BudgetError, match=r"take up to \d+ tokens; 26 of the budget of 30"):
        session.map("which?", ["a b c"] * 6)
    assert len(reader.batches) == 1
    assert session.usage.total_tokens == 4
    assert "budget" in session.transcript.steps[-1].error


@pytest.mark.parametrize("budget", [1, 40, 120, 400, 900])
def test_ask_never_spends_more_than_its_budget(budget):
    reader = Reader()
    session = open_session(LONG, reader, budget_tokens=budget)
    answer = session.ask("unrelated zebra question?")
    assert session.usage.total_tokens <= budget
    if answer.finish_reason == "budget":
        assert answer.text is None
        assert answer.detail
    else:
        assert answer.text.startswith("fact")


def test_ask_reads_the_best_passages_first_and_the_rest_only_if_they_do_not_tell():
    reader = Reader()
    session = open_session(LONG, reader)
    assert session.ask("w99 factA w0").text is not None
    assert [step.verb for step in session.transcript.steps] == ["search", "map", "reduce", "ask"]
    assert len(reader.batches[0]) == 2
    reader = Reader()
    missed = open_session(LONG.replace("factA", "w"), reader)
    answer = missed.ask("w40")  # its passages hold no fact
    assert answer.text == "factB factC"
    read, chunks = answer.read
    assert read == chunks > 8


def test_ask_says_how_far_the_budget_went():
    session = open_session(filler(600), Reader(), budget_tokens=500)
    answer = session.ask("w77?")
    assert (answer.text, answer.finish_reason) == (None, "budget")
    read, chunks = answer.read
    assert 0 < read < chunks
    assert f"{read} of {chunks}" in answer.detail
    assert open_session(filler(600), Reader()).ask("w77?").finish_reason == "not_found"


def test_ask_keeps_to_its_range():
    reader = Reader()
    session = open_session(LONG, reader)
    session.ask("w7", start=0, end=700)
    assert not any("factB" in prompt for batch in reader.batches for prompt in batch)


def test_cancelling_ends_a_call_under_way_and_refuses_the_next():
    reader, cancel = Reader(), CancelToken()
    session = open_session(LONG, reader, cancel=cancel)
    reader.before = lambda token: token.cancel()
    answer = session.ask("which?")
    assert (answer.text, answer.finish_reason) == (None, "cancelled")
    assert reader.batches == []
    with pytest.raises(CancelledError):
        session.peek(0, 5)


def test_closing_from_another_thread_ends_the_session():
    reader = Reader()
    session = open_session(LONG, reader)
    reached, closed = threading.Event(), threading.Event()

    def hold(token):
        reached.set()
        closed.wait(10)

    reader.before = hold

    def close():
        reached.wait(10)
        session.close()
        closed.set()

    thread = threading.Thread(target=close)
    thread.start()
    assert session.ask("which?").finish_reason == "cancelled"
    thread.join()


def test_the_transcript_adds_up_and_is_json():
    heard = []
    session = open_session(LONG, Reader(), listener=heard.append)
    session.peek(0, 10)
    session.ask("w99 factA w0")
    with pytest.raises(SessionError):
        session.peek(-1, 4)
    steps = json.loads(session.transcript.to_json())
    assert [step["number"] for step in steps] == list(range(len(steps)))
    assert sum(s["prompt_tokens"] for s in steps) == session.usage.prompt_tokens > 0
    assert sum(s["completion_tokens"] for s in steps) == session.usage.completion_tokens > 0
    assert steps[0]["result"] == LONG[:10]
    assert "0 to" in steps[-1]["error"]
    assert all(step["ms"] >= 0 for step in steps)
    search = next(step for step in steps if step["verb"] == "search")
    sources = next(step for step in steps if step["verb"] == "map")["arguments"]["sources"]
    assert [hit["start"] for hit in search["result"]] == [source["start"] for source in sources]
    assert "text" not in sources[0]
    assert heard == session.transcript.steps


def test_long_texts_are_cut_in_the_transcript_only():
    session = open_session(filler(2000), Reader())
    assert len(session.peek(0, 5000)) == 5000
    assert len(session.transcript.steps[0].result) < 1100


def test_limits_of_a_session():
    session = open_session(LONG, Reader(), max_peek=50, max_steps=3, max_sources=4)
    with pytest.raises(SessionError, match="at most 50"):
        session.peek(0, 51)
    with pytest.raises(SessionError, match="more than 4 chunks"):
        session.map("q", ["a"] * 5)
    session.search("w7")
    with pytest.raises(SessionError, match="called 3 verbs"):
        session.search("w7")


@pytest.mark.parametrize(
    ("verb", "arguments", "reason"),
    [
        ("query", ("", "text"), "question"),
        ("query", ("q" * 2001, "text"), "question"),
        ("query", (7, "text"), "question"),
        ("query", ("q", " "), "empty"),
        ("query", ("q", 7), "no source"),
        ("query", ("q", [1, 2, 3]), "no source"),
        ("query", ("q", [5, 4]), "after start"),
        ("map", ("q", "abc"), "a list"),
        ("map", ("q", None), "a list"),
        ("reduce", ("q", "abc"), "list of texts"),
        ("reduce", ("q", [1]), "list of texts"),
        ("reduce", ("q", None), "list of texts"),
        ("ask", (None,), "question"),
        ("ask", ("q", -1), "start is -1"),
        ("search", ("q", 5, "hybrid", 0, -3), "after start"),
        ("chunks", (10**9,), "start is"),
    ],
)
def test_verbs_name_what_is_wrong(verb, arguments, reason):
    with pytest.raises(SessionError, match=reason):
        getattr(open_session(LONG, Reader()), verb)(*arguments)


def test_a_context_without_room_says_so():
    with pytest.raises(SessionError, match="no room for text"):
        open_session(LONG, Reader(context=12)).query("which one is it?", (0, len(LONG)))


def test_templates_take_texts_with_braces_and_need_their_fields():
    prompts = Prompts.model_validate({})
    assert "{question} {x}" in prompts.of_source("Q", "{question} {x}")
    with pytest.raises(ValueError, match="source"):
        Prompts(query="{question}")


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Paris", True),
        ("not found", False),
        (" Not found.", False),
        ("The passage does not say", False),
        ("", False),
        ("nothing but water", True),
        ("None", False),
        ("nonesuch", True),
    ],
)
def test_what_counts_as_an_answer(text, yes):
    assert answered(text) is yes


# A real engine from here on.


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([LONG, "Answer the question from the text above in a few words."], 400)


@pytest.fixture
def engine(tokenizer, tiny_model) -> Engine:
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=192)
    return Engine(model, tokenizer, max_batch=4)


def engine_session(engine: Engine, gates=None, **fields) -> Session:
    model = EngineModel(engine)
    limits = SessionSettings.model_validate({"max_tokens": 6, "k": 3, **fields})
    return Session(index_for(LONG, model, limits), model, limits, gates)


def test_an_engine_reads_and_the_tokens_are_its_own(engine):
    session = engine_session(engine, budget_tokens=50_000)
    answers = session.map("which?", [(0, 40), (100, 140), (200, 240), (300, 330), (400, 420)])
    assert len(answers) == 5
    assert not engine.has_work
    stats = engine.stats()
    assert stats.prompt_tokens == session.usage.prompt_tokens
    assert 0 < session.usage.completion_tokens <= 5 * 6
    assert session.ask("which fact is it?").finish_reason in ("answered", "not_found", "budget")
    assert session.usage.total_tokens <= 50_000


def test_one_map_is_one_batch(engine):
    busiest = 0
    step = engine.step

    def counted():
        nonlocal busiest
        done = step()
        busiest = max(busiest, engine.active)
        return done

    engine.step = counted
    engine_session(engine).map("q", [(i, i + 20) for i in range(4)])
    assert busiest == 4


def test_gates_reach_the_engine(engine):
    texts = {
        gates: engine_session(engine, gates).map("q", [(i, i + 50) for i in range(0, 400, 50)])
        for gates in (0.0, 1.0, "learned", None)
    }
    assert texts[0.0] != texts[1.0]
    assert texts["learned"] == texts[None]
    with pytest.raises(GateError):
        engine_session(engine, [0.1, 0.2]).query("q", (0, 20))
    with pytest.raises(SessionError, match="policy"):
        engine_session(engine, "policy").query("q", (0, 20))
    assert not engine.has_work


def test_cancelling_frees_the_engines_rows(engine):
    token = CancelToken()
    model = EngineModel(engine)
    step, steps = engine.step, 0

    def stepping():
        nonlocal steps
        steps += 1
        if steps == 2:
            token.cancel()
        return step()

    engine.step = stepping
    with pytest.raises(CancelledError):
        model.generate(["a prompt", "another"] * 8, 50, (), None, token)
    assert not engine.has_work
    assert engine.stats().cancelled > 0
    assert steps < 10


def test_a_busy_engine_and_one_without_a_tokenizer_are_refused(engine, tokenizer):
    from mhc_model import Request

    engine.add(Request(tokenizer.encode("x", bos=True)))
    with pytest.raises(EngineError, match="other work"):
        EngineModel(engine).generate(["x"], 1, (), None, CancelToken())
    plain = Decoder(ModelConfig(vocab_size=8, n_layers=1, n_heads=1, d_model=8))
    with pytest.raises(SessionError, match="tokenizer"):
        EngineModel(Engine(plain))


@pytest.mark.parametrize("embedding", ["tokens", "hidden"])
def test_the_served_models_own_vectors_search(engine, embedding):
    model = EngineModel(engine, embedding)
    index = TextIndex(LONG, 120, 30, model.embedder)
    # The same words give the same vectors, trained or not.
    sought = LONG[600:630]
    hits = index.search(sought, 3, "embedding")
    assert any(hit.start <= 600 and hit.end >= 630 for hit in hits)
    assert EngineModel(engine, None).embedder is None
