"""The pool answers every request once, whatever happens to its replicas."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
from pool_requests import make_requests

from mhc_model import CheckpointError, Engine, EngineError, GateError, Request, SamplingParams
from rl.config import PoolSettings
from rl.pool import ReplicaPool

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def pool(ray_cluster, checkpoint, engine_kind):
    settings = PoolSettings(replicas=2, cpus_per_replica=0.5, max_batch=8, engine=engine_kind)
    pool = ReplicaPool(checkpoint, settings)
    yield pool
    pool.close()


def test_completions_come_in_order_and_equal_one_engine(pool, checkpoint):
    requests = make_requests(21, max_tokens=12)
    expected = Engine.from_checkpoint(checkpoint, device="cpu").generate(requests)
    results = pool.run(requests)
    assert [r.completion.request_id for r in results] == [request.id for request in requests]
    assert [r.completion.tokens for r in results] == [c.tokens for c in expected]
    assert {r.replica for r in results} == {0, 1}, "both replicas work"


def test_a_killed_replica_loses_no_request(pool, checkpoint):
    requests = make_requests(240)
    expected = Engine.from_checkpoint(checkpoint, device="cpu").generate(requests)
    before = pool.describe()
    victim = pool.pids[0]

    def kill_after_first_results() -> None:
        while pool.counters.dispatched < before["dispatched"] + 60:
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_after_first_results)
    killer.start()
    completions = pool.generate(requests)
    killer.join()
    assert [c.request_id for c in completions] == [request.id for request in requests]
    assert [c.tokens for c in completions] == [c.tokens for c in expected]
    counters = pool.describe()
    assert counters["restarted"] == before["restarted"] + 1
    assert counters["retried"] > before["retried"]
    assert counters["lost"] == 0
    assert counters["completed"] == counters["requested"]
    pool.wait_until_ready()
    assert None not in pool.pids
    assert pool.pids[0] != victim


def test_a_hung_replica_is_replaced_after_its_deadline(pool):
    requests = make_requests(16, max_tokens=4)
    original = pool.settings
    pool.settings = original.model_copy(update={"deadline_s": 2.0})
    victim = pool.pids[1]
    os.kill(victim, signal.SIGSTOP)
    try:
        completions = pool.generate(requests)
    finally:
        pool.settings = original
        with contextlib.suppress(ProcessLookupError):  # the pool has killed it
            os.kill(victim, signal.SIGKILL)
    assert [c.request_id for c in completions] == [request.id for request in requests]
    pool.wait_until_ready()
    assert pool.pids[1] != victim


def test_a_long_request_holds_nobody_up(pool):
    """Others join the batch that it is in, and use the rows beside it: they end before it."""
    ended = []
    original = pool.settings
    pool.settings = original.model_copy(update={"slice_s": 0.01})

    def submit(name: str, prompts: list[list[int]], max_tokens: int):
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        future = pool.submit([Request(prompt, sampling=sampling) for prompt in prompts])
        future.add_done_callback(lambda _: ended.append(name))
        return future

    try:
        before = pool.counters.dispatched
        long = submit("long", [[1]] * 4, max_tokens=120)
        while pool.counters.dispatched < before + 4:
            time.sleep(0.001)
        short = submit("short", [[2, i] for i in range(60)], max_tokens=2)
        assert (len(long.result()), len(short.result())) == (4, 60)
    finally:
        pool.settings = original
    assert ended == ["short", "long"]


def test_samples_come_after_each_other_and_equal_one_engine(pool, checkpoint, engine_kind):
    requests = [
        Request([5, i], sampling=SamplingParams(max_tokens=8, temperature=1.0, seed=i), n=3)
        for i in range(7)
    ]
    # vLLM's sampler draws other numbers from a seed, so there the pool is compared with itself.
    engine = Engine.from_checkpoint(checkpoint, device="cpu") if engine_kind == "torch" else pool
    expected = engine.generate(requests)
    results = pool.generate(requests)
    assert [(c.request_id, c.index) for c in results] == [
        (request.id, index) for request in requests for index in range(3)
    ]
    assert [c.tokens for c in results] == [c.tokens for c in expected]


def test_the_same_request_may_be_asked_twice(pool):
    request = make_requests(1, max_tokens=4)[0]
    first, second = pool.generate([request, request])
    assert first.request_id == second.request_id == request.id
    assert first.tokens == second.tokens


def test_a_bad_request_ends_its_own_call_only(pool):
    good = pool.submit(make_requests(20, max_tokens=20))
    before = pool.describe()
    wrong = Request([1], gates=[0.1, 0.2, 0.3], sampling=SamplingParams(max_tokens=2))
    bad = pool.submit([wrong, *make_requests(300)])
    with pytest.raises(GateError):
        bad.result()
    assert pool.counters.lost > before["lost"]
    assert len(good.result()) == 20
    assert pool.queued == 0
    sent = pool.counters.dispatched - before["dispatched"]
    assert sent < 150, "what was left of the bad call is withdrawn"


def test_callers_wait_while_the_queue_is_full(pool):
    original = pool.settings
    pool.settings = original.model_copy(update={"max_queue": 8, "max_batch": 1})
    most, answers = 0, []

    def ask() -> None:
        answers.extend(pool.generate(make_requests(8, max_tokens=10)))

    callers = [threading.Thread(target=ask) for _ in range(4)]
    try:
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            most = max(most, pool.queued)
            time.sleep(0.001)
    finally:
        pool.settings = original
    assert len(answers) == 32
    assert 0 < most <= 8


def test_replicas_say_how_long_they_worked(pool):
    before = pool.usage()
    started = time.monotonic()
    pool.generate(make_requests(60))
    worked = pool.usage().since(before)
    passed = time.monotonic() - started
    assert set(worked.by_slot) == {0, 1}
    assert 0.2 < worked.utilisation <= 1.0
    assert sum(worked.busy_s.values()) <= 2 * passed
    time.sleep(0.3)
    idle = pool.usage()
    time.sleep(0.3)
    assert pool.usage().since(idle).utilisation == 0.0


def test_the_pool_grows_while_requests_wait_and_shrinks_when_idle(ray_cluster, checkpoint):
    settings = PoolSettings(
        replicas=1,
        max_replicas=2,
        max_batch=2,
        grow_after_s=0.05,
        idle_s=0.5,
        cpus_per_replica=0.5,
    )
    pool = ReplicaPool(checkpoint, settings)
    try:
        answered: set[int] = set()
        deadline = time.monotonic() + 120
        while answered != {0, 1}:
            assert time.monotonic() < deadline, "the second replica never came to work"
            # Bursts that are shorter than a start, so nothing waits while the second is starting.
            results = pool.run(make_requests(12, max_tokens=30))
            assert len(results) == 12
            answered |= {result.replica for result in results}
            assert len(pool.pids) <= 2
        assert pool.counters.grown >= 1
        deadline = time.monotonic() + 20
        while len(pool.pids) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pool.counters.shrunk >= 1
        assert len(pool.pids) == 1
        assert len(pool.generate(make_requests(3, max_tokens=2))) == 3
    finally:
        pool.close()


def test_a_pool_grows_by_the_samples_that_wait(ray_cluster, checkpoint):
    settings = PoolSettings(
        max_replicas=4,
        max_batch=4,
        grow_after_s=0.01,
        idle_s=0.01,
        cpus_per_replica=2.5,  # there is no place for a second one, so none is loaded
    )
    pool = ReplicaPool(checkpoint, settings)
    sampling = SamplingParams(max_tokens=120, temperature=1.0, ignore_eos=True)
    try:
        pool.generate([Request([5, i], sampling=sampling, n=8) for i in range(2)])
        assert pool.counters.grown == 3, "16 samples in batches of 4"
    finally:
        pool.close()


def test_bad_requests_are_refused_and_the_pool_goes_on(pool):
    with pytest.raises(GateError, match=r"allowed: 1 number .* \[0, 1\]"):
        pool.generate([Request([1], gates=1.5, sampling=SamplingParams(max_tokens=2))])
    with pytest.raises(EngineError, match="context is 128"):
        pool.generate([Request([1], sampling=SamplingParams(max_tokens=500))])
    assert len(pool.generate(make_requests(3, max_tokens=2))) == 3


def test_the_queue_is_bounded(pool):
    original = pool.settings
    pool.settings = original.model_copy(update={"max_queue": 4})
    try:
        with pytest.raises(EngineError, match=r"5 requests .*max_queue allows 4"):
            pool.generate(make_requests(5, max_tokens=2))
    finally:
        pool.settings = original


def test_a_closed_pool_says_so(ray_cluster, checkpoint):
    pool = ReplicaPool(checkpoint, PoolSettings(cpus_per_replica=0.5))
    pool.close()
    pool.close()
    with pytest.raises(EngineError, match="this pool is closed"):
        pool.generate(make_requests(1))


def test_a_damaged_checkpoint_is_refused(ray_cluster, checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        ReplicaPool(tmp_path, PoolSettings())
