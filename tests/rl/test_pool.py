"""The pool answers every request once, whatever happens to its replicas."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
import torch

from mhc_model import CheckpointError, Engine, EngineError, GateError, Request, SamplingParams
from rl.config import PoolSettings
from rl.pool import ReplicaPool

pytestmark = pytest.mark.ray


def make_requests(count: int, max_tokens: int = 60) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    return [
        Request(
            torch.randint(0, 250, (5 + i % 7,), generator=generator).tolist(),
            gates=torch.rand(4, generator=generator),
            sampling=SamplingParams(max_tokens=max_tokens),
        )
        for i in range(count)
    ]


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
