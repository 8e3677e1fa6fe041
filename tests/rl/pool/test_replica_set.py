"""The actors of a pool, one step at a time."""

from __future__ import annotations

import pytest
import ray
from pool_requests import make_requests

from mhc_model.checkpoint import checkpoint_hash
from rl.config import PoolSettings
from rl.pool import ReplicaSet, Ticket, pack_checkpoint

pytestmark = pytest.mark.ray


def test_what_is_withdrawn_before_it_was_sent_is_not_run(ray_cluster, checkpoint):
    settings = PoolSettings(cpus_per_replica=0.5)
    packed = ray.put(pack_checkpoint(checkpoint))
    replicas = ReplicaSet(packed, checkpoint_hash(checkpoint), lambda: settings)
    unsent, sent = (Ticket(name, 0, make_requests(1)[0]) for name in ("unsent", "sent"))
    try:
        while not replicas.is_quiet:
            replicas.poll(0.05)
        assert replicas.take(unsent)
        replicas.drop("unsent")
        assert replicas.is_quiet
        assert replicas.take(sent)
        replicas.poll(0.0)
        replicas.drop("sent")
        assert not replicas.is_quiet, "the replica is still to be told"
        while not replicas.is_quiet:
            assert not replicas.poll(0.05).finished
    finally:
        replicas.close()
