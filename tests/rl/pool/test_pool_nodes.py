"""Replicas on several nodes, in one machine: one a node, and what happens when a node goes."""

from __future__ import annotations

import os

import pytest

from benchmarks.faults import lose_a_node

# The machine's two cores load one model after another: more nodes only take longer. 8 was tried.
NODES = int(os.environ.get("MHC_TEST_NODES", "2"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_node_leaves_its_work_to_the_others(checkpoint):
    facts = lose_a_node(checkpoint, NODES)
    assert facts["nodes_used"] == NODES, "one replica on each node"
    assert facts["answers"] == facts["asked"]
    assert facts["equal_to_one_engine"]
    assert facts["lost"] == 0
    assert facts["retried"] > 0, "the node had work when it was lost"
    assert facts["replicas_left"] == NODES - 1
