"""The order of blocks: a permutation of every epoch, the same for every number of workers."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc_model.errors import DataError
from train.data import Batches, ReadAhead
from train.data.batches import permute


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_a_permutation_sends_every_place_elsewhere(size, seed):
    keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64)
    assert sorted(permute(np.arange(size), size, keys)) == list(range(size))


def test_a_permutation_is_as_even_as_a_random_one():
    size, bins, draws = 1000, 10, 400
    counts = np.zeros((bins, bins))
    neighbours = 0
    for seed in range(draws):
        keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64)
        order = permute(np.arange(size), size, keys)
        np.add.at(counts, (np.arange(size) * bins // size, order * bins // size), 1)
        neighbours += np.sum(np.abs(np.diff(order)) == 1)
    expected = draws * size / bins**2
    # 81 degrees of freedom: a random permutation is beyond 140 once in 20,000 times.
    assert ((counts - expected) ** 2 / expected).sum() < 140
    assert neighbours / draws == pytest.approx(2, abs=0.4)


def test_a_permutation_of_a_large_corpus_takes_no_table():
    keys = np.random.default_rng(0).integers(2**64, size=6, dtype=np.uint64)
    size = 10**12 + 7
    ids = permute(np.arange(size - 10_000, size), size, keys)
    assert len(set(ids.tolist())) == 10_000
    assert 0 <= ids.min() < ids.max() < size


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(2, 400),
    context=st.integers(1, 8),
    batch=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_every_epoch_visits_every_block_once(count, context, batch, seed):
    tokens = np.arange(count, dtype=np.uint16)
    blocks = (count - 1) // context
    if blocks < batch:
        with pytest.raises(DataError, match=f"{count} tokens"):
            Batches(tokens, context, batch, seed)
        return
    batches = Batches(tokens, context, batch, seed)
    steps = 3 * blocks // batch + 1
    order = np.concatenate([batches.block_ids(step, 0, batch) for step in range(1, steps + 1)])
    first, second = order[:blocks], order[blocks : 2 * blocks]
    assert sorted(first) == sorted(second) == list(range(blocks))
    if blocks > 20:
        assert list(first) != list(second)


def test_a_batch_is_a_function_of_the_step_and_splits_over_workers():
    tokens = np.arange(1000, dtype=np.uint16)
    batches, fresh = (Batches(tokens, 8, 12, seed=3) for _ in range(2))
    for step in range(1, 40):
        batches.sequences(step, 0, 12)
    inputs, targets = batches.sequences(25, 0, 12)
    again, _ = fresh.sequences(25, 0, 12)
    assert inputs.equal(again)
    halves = [fresh.sequences(25, 0, 6)[0], fresh.sequences(25, 6, 12)[0]]
    assert inputs.tolist() == [*halves[0].tolist(), *halves[1].tolist()]
    assert (targets == inputs + 1).all()
    assert (inputs[:, 0] % 8 == 0).all()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_reading_ahead_changes_nothing(workers):
    tokens = np.arange(1000, dtype=np.uint16)
    batches = Batches(tokens, 8, 12, seed=3)
    own = 12 // workers
    for rank in range(workers):
        part = range(rank * own, (rank + 1) * own)
        ahead = ReadAhead(Batches(tokens, 8, 12, seed=3), part, device_batch=3)
        # In order over two epochs, a jump back as after a resume, and a question out of order.
        for step in [*range(1, 23), 7, 8, 9, 30]:
            for start in range(part.start, part.stop, 3):
                inputs, targets = ahead.sequences(step, start, start + 3)
                expected = batches.sequences(step, start, start + 3)
                assert inputs.equal(expected[0])
                assert targets.equal(expected[1])
        ahead.close()
        assert ahead.sequences(5, 0, 12)[0].equal(batches.sequences(5, 0, 12)[0])
        ahead.close()


def test_batches_are_read_before_they_are_asked_for():
    seen = []

    class Watched(Batches):
        def sequences(self, step, start, stop):
            seen.append((step, start))
            return super().sequences(step, start, stop)

    ahead = ReadAhead(Watched(np.arange(1000), 8, 12, seed=3), range(6, 12), 3, depth=3)
    ahead.sequences(4, 6, 9)
    deadline = time.monotonic() + 20
    while len(seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == [(4, 6), (4, 9), (5, 6), (5, 9)]
    ahead.close()
