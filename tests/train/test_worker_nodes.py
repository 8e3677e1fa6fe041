"""Training over several nodes, of which one is lost on the way."""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from processes import losses, started, train_workers, wait_for

from mhc_model.settings import dump_settings


def serve_nodes(commands: Connection, directory: str, workers: int) -> None:
    """A cluster of a head without CPUs and `workers` nodes of one CPU, in this process.

    Sends its address; then each process id that it receives is a node to kill.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": directory})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(workers)]
        cluster.wait_for_nodes()
        commands.send(cluster.address)
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        while (raylet := commands.recv()) is not None:
            cluster.remove_node(raylets[raylet], allow_graceful=False)
    finally:
        cluster.shutdown()


@contextmanager
def nodes(directory: str, workers: int) -> Iterator[tuple[str, Connection]]:
    """Address of a cluster of several nodes, and where to say which of them dies.

    In a process of its own: what Ray reads from the environment it reads when it is imported.
    """
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve_nodes, args=(there, directory, workers), daemon=True
    )
    process.start()
    try:
        assert here.poll(120), "no cluster"
        yield here.recv(), here
    finally:
        here.send(None)
        process.join(60)
        process.kill()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_lost_nodes_worker_goes_on_where_there_is_room(
    tmp_path, monkeypatch, make_config, make_trainer, persist_in
):
    changes = {"steps": 48, "checkpoint_every": 6, "eval_every": 48, "device_batch": 8}
    straight = make_trainer(make_config(name="straight", **changes))
    straight.fit(persist_in(straight.run))
    expected = losses(Path(straight.run.path))

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())
    directory = tempfile.mkdtemp(prefix="ray-")
    output = tmp_path / "output.txt"
    try:
        with nodes(directory, workers=3) as (address, kill):
            config = make_config(**changes, workers={"num_workers": 2}, ray={"address": address})
            run = Path(config.storage, config.name)
            dump_settings(config, tmp_path / "config.yaml")
            command = [sys.executable, "-m", "train", "--config", str(tmp_path / "config.yaml")]
            with started(command, output) as process:
                wait_for(lambda: max(losses(run), default=0) >= 9, process, "step 9")
                before = train_workers(directory)
                assert len(set(before.values())) == 2, "one CPU a node: one worker a node"
                lost = max(before.values())
                kill.send(lost)
                wait_for(
                    lambda: len(train_workers(directory).keys() - before.keys()) == 2,
                    process,
                    "workers on what is left",
                )
                assert lost not in train_workers(directory).values()
                assert process.wait(timeout=240) == 0, output.read_text()
        assert re.search(r"resuming after step \d+", output.read_text())
        found = losses(run)
        assert sorted(found) == list(range(1, 49))
        assert [found[step] for step in sorted(found)] == pytest.approx(
            [expected[step] for step in sorted(expected)], abs=1e-4
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
