"""The driver: what it refuses before anything starts, and how a run ends."""

import json

import pytest
import ray.train

from mhc_model import ConfigError, MHCError
from mhc_model.settings import to_yaml
from train.data import prepare_corpus
from train.launch import check_same_run, launch, only_driver
from train.records import RunDirectory
from train.worker import failure_file


def test_the_same_name_with_another_model_or_data_is_refused(make_config, tiny_corpus):
    config = make_config()
    run = RunDirectory(config.storage, config.name)
    check_same_run(run, config, tiny_corpus)  # nothing there yet
    run.write_text("config.yaml", to_yaml(config))
    run.write_text("data.json", json.dumps(tiny_corpus.describe()))
    check_same_run(run, config.model_copy(update={"steps": 99}), tiny_corpus)
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match=r"seed: 0 -> 5.*another name"):
        check_same_run(run, other, tiny_corpus)
    run.write_text("data.json", json.dumps(tiny_corpus.describe() | {"sha256": "other"}))
    with pytest.raises(ConfigError, match="content of the data"):
        check_same_run(run, config, tiny_corpus)


def test_a_finished_run_says_so_and_starts_nothing(finished_copy, capsys):
    run = RunDirectory(finished_copy.storage, finished_copy.name)
    before = run.read_text("metrics.jsonl")
    run.write_text("config.yaml", to_yaml(finished_copy))
    run.write_text("data.json", json.dumps(prepare_corpus(finished_copy.data).describe()))
    launch(finished_copy, {"address": "nowhere:1"})
    assert "is complete at step 16" in capsys.readouterr().out
    assert run.read_text("metrics.jsonl") == before
    with pytest.raises(ConfigError, match="seed"):
        launch(finished_copy.model_copy(update={"seed": 1}), {"address": "nowhere:1"})


@pytest.mark.parametrize(
    ("said", "message"), [("loss is nan", "^loss is nan$"), (None, "worker 0 died")]
)
def test_failed_workers_end_in_an_error_of_ours(make_config, monkeypatch, said, message):
    config = make_config()
    run = RunDirectory(config.storage, config.name)

    def fail(*arguments):
        if said is not None:
            run.write_text(failure_file(0), said)
        raise ray.train.WorkerGroupError("worker 0 died", {})

    monkeypatch.setattr("train.launch.fit", fail)
    with pytest.raises(MHCError, match=message):
        launch(config, {"address": "nowhere:1"})
    assert run.read_text(failure_file(0)) is None


def test_a_run_has_one_driver_at_a_time(finished_copy):
    run = RunDirectory(finished_copy.storage, finished_copy.name)
    with (
        only_driver(run),
        pytest.raises(ConfigError, match=r"another process trains the run in .*/copy/tiny"),
    ):
        launch(finished_copy, {"address": "nowhere:1"})
    with only_driver(run):
        pass
