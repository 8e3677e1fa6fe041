"""Items on one engine: each comes back whole, once, with its completions in order."""

from __future__ import annotations

import pytest

from evals.tasks import Item, Plan, evaluate, fingerprint, run_items
from evals.tasks.plan import check_ids
from mhc_model.engine import Engine, Request, SamplingParams
from mhc_model.errors import DataError, EngineError


@pytest.fixture
def engine(make_model, tokenizer):
    return Engine(make_model(), tokenizer, max_batch=2)


def item(identity, *lengths):
    """Asks for answers of these lengths; its sample is how long they became."""
    requests = tuple(
        Request([1, 2, 3], None, SamplingParams(max_tokens=n, ignore_eos=True)) for n in lengths
    )
    return Item(
        identity, requests, lambda done: {"id": identity, "n": [len(c.tokens) for c in done]}
    )


def test_items_come_as_they_end_with_completions_in_the_order_of_requests(engine):
    found = list(run_items(engine, [item("long", 9, 2, 4), item("none"), item("short", 1)]))
    assert [one.id for one, _ in found] != ["long", "none", "short"]
    samples = {one.id: one.finish(completions)["n"] for one, completions in found}
    assert samples == {"long": [9, 2, 4], "none": [], "short": [1]}


def test_a_plan_runs_what_is_not_done_and_keeps_its_order(engine):
    items = [item("a", 6), item("b", 1), item("c", 2)]
    plan = Plan("t", engine, items, {}, lambda samples: {})
    assert evaluate(plan) == [{"id": "a", "n": [6]}, {"id": "b", "n": [1]}, {"id": "c", "n": [2]}]
    assert [sample["id"] for sample in plan.run(done={"a", "b"})] == ["c"]


def test_a_busy_engine_is_refused(engine):
    engine.add(Request([1], None, SamplingParams(max_tokens=1)))
    with pytest.raises(EngineError, match="idle engine"):
        next(run_items(engine, [item("a", 1)]))


def test_ids_are_there_and_different():
    check_ids(["a", "b"])
    for ids in ([], ["a", "a"]):
        with pytest.raises(DataError, match=f"{len(ids)} problems"):
            check_ids(ids)


def test_a_fingerprint_keeps_texts_apart():
    assert fingerprint([["ab", "c"]]) != fingerprint([["a", "bc"]])
