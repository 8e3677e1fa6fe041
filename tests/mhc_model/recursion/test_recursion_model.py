"""Sessions that read with a real engine: its tokens, batches, gates, vectors and rows."""

from __future__ import annotations

import pytest
from recursion_cases import LONG

from mhc_model import Decoder, Engine, GateError, ModelConfig, Request
from mhc_model.errors import CancelledError, EngineError, SessionError
from mhc_model.recursion import (
    CancelToken,
    EngineModel,
    Session,
    SessionSettings,
    TextIndex,
    index_for,
)
from mhc_model.tokenizer import Tokenizer


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
    with pytest.raises(GateError, match=r"'policy'.*names of this model are learned"):
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
