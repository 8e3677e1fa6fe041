"""The directory of a run where it is no directory of this machine."""

import json

import pyarrow.fs

from train.loop import ProcessGroup, Trainer
from train.records import MetricsLog, RunDirectory


def test_a_run_in_a_bucket(make_config, tiny_corpus, tmp_path):
    """Any file system that is not the local disk: files are copied there and read from there."""
    bucket = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    run = RunDirectory("bucket/runs", "x", bucket)
    assert run.read_text("metrics.jsonl") is None
    assert run.steps() == []

    def persist(step, metrics, directory):
        # After a kill behind this, the rows of the checkpoint tell what it is worth.
        assert len(run.read_text("metrics.jsonl").splitlines()) == step
        pyarrow.fs.copy_files(
            str(directory), f"{run.path}/step-{step:06d}", destination_filesystem=bucket
        )

    def bucket_trainer():
        return Trainer(make_config(steps=8), tiny_corpus, run, ProcessGroup())

    bucket.create_dir(f"{run.path}/step-000004", recursive=True)
    bucket.create_dir(f"{run.path}/step-000008", recursive=True)
    bucket_trainer().fit(persist)
    assert run.steps() == [4, 8]
    assert len(run.read_text("metrics.jsonl").splitlines()) == 8
    assert (tmp_path / "bucket/runs/x/tensorboard").is_dir()
    assert json.loads(run.read_text("best.json"))["step"] == 8
    run.delete_step(8)
    run = RunDirectory("bucket/runs", "x", bucket)
    resumed = bucket_trainer()
    resumed.resume()
    assert resumed.step == 4
    MetricsLog(run, resumed.step).close()
    assert len(run.read_text("metrics.jsonl").splitlines()) == 4
