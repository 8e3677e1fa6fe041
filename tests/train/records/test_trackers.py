"""W&B and MLflow, the real packages where they are installed, without a server."""

import sys
from pathlib import Path

import pytest

from mhc_model import ConfigError
from train.launch import _check_start
from train.records import MetricsLog, RunDirectory, import_tracker, make_trackers

ROW = {
    **{"step": 3, "loss": 1.5, "val_bpb": 0.75, "gates": [0.25, 0.5]},
    "samples": [{"prompt": "Why", "text": " not?"}],
}


def test_mlflow_gets_every_row_and_a_resumed_run_is_the_same(make_config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = make_config(trackers={"mlflow": True, "project": "tests"})
    run = RunDirectory(config.storage, config.name)
    for step in (3, 4):
        log = MetricsLog(run, step - 1, make_trackers(config, run.location))
        log.write(ROW | {"step": step})
        log.close()
    client = mlflow.MlflowClient()
    number = client.get_experiment_by_name("tests").experiment_id
    (found,) = client.search_runs([number])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["train/loss"] == 1.5
    assert found.data.params["optimizer.lr"] == str(config.optimizer.lr)
    history = client.get_metric_history(found.info.run_id, "gates/001")
    assert [(metric.step, metric.value) for metric in history] == [(3, 0.5), (4, 0.5)]
    (written,) = Path(tmp_path, "mlflow").rglob("step-000003.txt")
    assert written.read_text() == "Why not?"


def test_wandb_gets_every_row(make_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = make_config(trackers={"wandb": True, "project": "tests"})
    run = RunDirectory(config.storage, config.name)
    (tracker,) = make_trackers(config, run.location)
    log = MetricsLog(run, 0, [tracker])
    log.write(ROW)
    assert tracker._run.summary["train/loss"] == 1.5
    assert tracker._run.summary["samples/0"] == "Why not?"
    assert tracker._run.project == "tests"
    log.close()
    (record,) = tmp_path.rglob("*.wandb")
    assert record.stat().st_size > 0


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_there_is_named_before_training(
    make_config, tiny_corpus, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    with pytest.raises(ConfigError, match=rf"pip install 'mhc-gates\[{name}\]'"):
        import_tracker(name)
    with pytest.raises(ConfigError, match=f"{name} is not installed"):
        _check_start(make_config(trackers={name: True}), tiny_corpus)
