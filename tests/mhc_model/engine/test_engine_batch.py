"""The running batch as tensors: what joining, moving, leaving and drawing do to each slot."""

from __future__ import annotations

import pytest
import torch
from engine_cases import make_row

from mhc_model.engine.batch import Batch, Wanted, score
from mhc_model.engine.sampling import sample

CPU = torch.device("cpu")
GREEDY = Wanted(sampled=False, truncated=False, logprobs=False, top_logprobs=0)


def columns(batch: Batch, slot: int) -> list:
    """All that a step reads of a slot."""
    values = (batch.tokens, batch.live, batch.temperature, batch.top_p, batch.top_k, batch.seed)
    return [batch.gates[slot].tolist(), *(v[slot].item() for v in (*values, batch.drawn))]


def test_a_row_brings_its_gates_and_sampling():
    batch = Batch(3, 2, CPU)
    row = make_row(
        index=2, gates=torch.tensor([0.25, 1.0]), temperature=0.5, top_p=0.75, top_k=7, seed=11
    )
    # Left behind by whoever had the slot before.
    batch.live[1], batch.drawn[1] = 1, 9
    batch.put(row, 1)
    assert (row.slot, batch.rows) == (1, [None, row, None])
    assert columns(batch, 1) == [[0.25, 1.0], 0, 0, 0.5, 0.75, 7, row.seed, 0]
    assert columns(batch, 0) == columns(batch, 2) == [[0.0, 0.0], 0, 0, 0.0, 0.0, 0, 0, 0]


def test_slots_are_counted_up_to_the_last_that_is_taken():
    batch = Batch(4, 0, CPU)
    assert batch.gates is None, "a plain model has none"
    assert (batch.size, batch.high, batch.free_slot(), batch.taken) == (4, 0, 0, [])
    rows = [make_row() for _ in range(4)]
    for slot in (0, 2):
        batch.put(rows[slot], slot)
    assert (batch.high, batch.free_slot(), batch.taken) == (3, 1, [rows[0], rows[2]])
    for slot in (1, 3):
        batch.put(rows[slot], slot)
    assert (batch.high, batch.free_slot()) == (4, 4), "no slot is free"
    batch.live[3] = 1
    batch.remove(rows[3])
    assert (batch.high, batch.free_slot(), rows[3].slot) == (3, 3, None)
    assert int(batch.live[3]) == 0
    batch.remove(rows[3])  # it has none: nothing happens
    assert batch.taken == rows[:3]


def test_a_moved_row_takes_everything_along():
    batch = Batch(3, 2, CPU)
    row = make_row(gates=torch.tensor([0.5, 0.75]), temperature=1.5, top_p=0.5, top_k=3, seed=8)
    batch.put(row, 2)
    batch.tokens[2], batch.live[2], batch.drawn[2] = 40, 1, 6
    before = columns(batch, 2)
    batch.move(row, 0)
    assert columns(batch, 0) == before
    assert (row.slot, batch.rows) == (0, [row, None, None])
    assert int(batch.live[2]) == 0, "else a step would go on drawing for it"


def test_a_step_leaves_out_what_nobody_wants():
    batch = Batch(1, 0, CPU)
    greedy, warm = make_row(top_k=5, top_p=0.5), make_row(temperature=1.0)
    cut, kept = make_row(temperature=1.0, top_k=5), make_row(temperature=1.0, top_p=0.9)
    told = make_row(logprobs=True, top_logprobs=4)
    more = make_row(logprobs=True, top_logprobs=7)
    prompts = make_row(prompt_logprobs_from=0, top_logprobs=9)  # of its prompt only
    assert batch.wanted([]) == batch.wanted([greedy]) == GREEDY
    assert batch.wanted([greedy, warm]) == GREEDY._replace(sampled=True)
    for row in (cut, kept):
        assert batch.wanted([warm, row]) == GREEDY._replace(sampled=True, truncated=True)
    assert batch.wanted([make_row(logprobs=True)]) == GREEDY._replace(logprobs=True)
    assert batch.wanted([prompts]) == GREEDY
    assert batch.wanted([told, more, prompts]) == GREEDY._replace(logprobs=True, top_logprobs=7)


@pytest.mark.parametrize("slots", [slice(0, 4), torch.tensor([3, 0, 2, 1])])
def test_each_slot_draws_with_its_own_numbers(slots):
    batch = Batch(5, 0, CPU)
    temperatures, top_ks, top_ps = (0.0, 1.0, 2.0, 0.7), (0, 3, 0, 0), (1.0, 1.0, 0.6, 1.0)
    rows = [
        make_row(temperature=t, top_k=k, top_p=p, seed=20 + i)
        for i, (t, k, p) in enumerate(zip(temperatures, top_ks, top_ps, strict=True))
    ]
    for slot, row in enumerate(rows):
        batch.put(row, slot)
    batch.live[:] = torch.tensor([1, 1, 0, 1, 0])
    batch.drawn[:4] = torch.tensor([0, 5, 9, 2])
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    order = torch.arange(4)[slots]
    expected = sample(
        logits,
        torch.tensor(temperatures)[order],
        torch.tensor(top_ks)[order],
        torch.tensor(top_ps)[order],
        torch.arange(20, 24)[order],
        torch.tensor([0, 5, 9, 2])[order],
    )
    drawn = batch.draw(logits, slots, batch.wanted(rows))
    assert torch.equal(drawn.tokens, expected)
    assert torch.equal(batch.tokens[order], expected), "they are fed next"
    # Only rows that decode count what was drawn.
    assert batch.drawn.tolist() == [1, 6, 9, 3, 0]
    assert (drawn.logprobs, drawn.top) == (None, None)


def test_scores_are_log_probabilities_of_the_model():
    logits = 3 * torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    tokens, expected = torch.tensor([3, 0, 29, 7, 7]), logits.log_softmax(dim=-1)
    assert score(logits, tokens, GREEDY) == (None, None)
    logprobs, top = score(logits, tokens, GREEDY._replace(logprobs=True))
    torch.testing.assert_close(logprobs, expected[torch.arange(5), tokens])
    assert top is None
    for count in (4, 40):  # of 40, there are 30
        _, (values, ids) = score(logits, tokens, Wanted(False, False, True, count))
        best = expected.topk(min(count, 30), dim=-1)
        torch.testing.assert_close(values, best.values)
        assert torch.equal(ids, best.indices)
