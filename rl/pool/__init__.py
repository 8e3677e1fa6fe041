"""Requests to completions, on replicas of the model that may die.

In: a checkpoint and `PoolSettings`, then requests of the engine. Out: every completion once, in the
order of the requests, with who made it. May import rl.config and mhc_model.

    replica.py      `Replica`: an engine in an actor of its own
    replica_set.py  `ReplicaSet`: the actors, started, given work, watched and replaced
    pool.py         `ReplicaPool`: calls, their queue, what is tried again; `LocalPool` without Ray
"""

from rl.pool.pool import Counters, LocalPool, ReplicaPool, Result, Usage
from rl.pool.replica import Replica, pack_checkpoint
from rl.pool.replica_set import ReplicaSet, Ticket

__all__ = [
    "Counters",
    "LocalPool",
    "Replica",
    "ReplicaPool",
    "ReplicaSet",
    "Result",
    "Ticket",
    "Usage",
    "pack_checkpoint",
]
