"""The loop without Ray: resuming, checkpoints, metrics, validation."""

import errno
import json
import math
from contextlib import suppress
from pathlib import Path

import pyarrow.fs
import pytest
import ray.train
import torch

from evals.tasks.bits_per_byte import bits_per_byte
from mhc_model import CheckpointError, ConfigError, MHCError, load_checkpoint
from mhc_model.settings import to_yaml
from train.data import prepare_corpus
from train.launch import check_same_run, launch, only_driver
from train.loop import ProcessGroup, Trainer, Validation
from train.records import MetricsLog, Progress, RunDirectory, find_resume, step_name
from train.worker import failure_file


def read_rows(config) -> list[dict]:
    path = Path(config.storage, config.name, "metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_to(config, steps, make_trainer, persist_in) -> Trainer:
    """Trains as a new process would: from the newest checkpoint; killed after that of `steps`."""
    trainer = make_trainer(config)
    trainer.resume()
    persist = persist_in(trainer.run)

    def persist_and_stop(step, metrics, directory):
        persist(step, metrics, directory)
        if step == steps < config.steps:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        trainer.fit(persist_and_stop)
    return trainer


def test_two_halves_equal_the_whole_across_an_epoch(
    finished_once, make_config, make_trainer, persist_in
):
    whole, straight = finished_once.config, finished_once
    config = make_config(name="halves")
    blocks = straight.batches.blocks
    assert 8 * 16 < blocks < 16 * 16  # the second half crosses into the second epoch
    run_to(config, 8, make_trainer, persist_in)
    assert len(read_rows(config)) == 8
    resumed = run_to(config, 16, make_trainer, persist_in)
    losses = [[row["loss"] for row in read_rows(c)] for c in (whole, config)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for (name, a), b in zip(
        straight.decoder.named_parameters(), resumed.decoder.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


def test_training_learns_and_writes_one_row_a_step(finished_once):
    config, trainer = finished_once.config, finished_once
    rows = read_rows(config)
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert rows[0]["loss"] == pytest.approx(math.log(config.model.vocab_size), abs=1e-3)
    assert {"val_loss", "val_bpb", "val_loss_gate_0", "val_loss_gate_1"} <= set(rows[7])
    assert "val_loss" not in rows[8]
    assert len(rows[7]["gates"]) == 4
    assert rows[15]["h_res_drift"] > 1e-3
    assert list(Path(trainer.run.path, "tensorboard").iterdir())


def test_only_the_newest_checkpoints_are_kept_and_load_anywhere(finished_once, tiny_corpus):
    trainer = finished_once
    assert trainer.run.steps() == [12, 16]
    checkpoint = load_checkpoint(trainer.run.path)
    assert checkpoint.metadata["step"] == 16
    assert checkpoint.metadata["corpus"] == tiny_corpus.sha256
    for name, value in trainer.decoder.state_dict().items():
        assert checkpoint.model.state_dict()[name].equal(value), name
    assert not list(Path(trainer.run.path).rglob("*.pkl"))
    assert not list(Path(trainer.run.path).rglob("*.pt"))


@pytest.mark.parametrize(
    "file", ["model/model.safetensors", "trainer/state.safetensors", "trainer/state.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished_copy, file, damage, capsys):
    run = RunDirectory(finished_copy.storage, finished_copy.name)
    path = Path(run.path, "step-000016", file)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        path.write_bytes(content[:-40] + content[-40:].replace(content[-20:-19], b"!"))
    else:
        path.unlink()
    found = find_resume(run)
    assert found.step == 12
    assert "step-000016 is damaged" in capsys.readouterr().out


def test_a_run_without_a_whole_checkpoint_is_not_begun_again(finished_copy, make_trainer):
    run = RunDirectory(finished_copy.storage, finished_copy.name)
    for step in (12, 16):
        (Path(run.path) / step_name(step) / "trainer" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .*another name"):
        make_trainer(finished_copy).resume()
    assert run.steps() == [12, 16]
    run.delete_step(16)
    with pytest.raises(CheckpointError, match="none of the 1"):  # steps after 12 were done
        find_resume(run)
    rows = run.read_text("metrics.jsonl").splitlines(keepends=True)
    run.write_text("metrics.jsonl", "".join(rows[:12]))
    assert find_resume(run) is None  # cut off in its first save


@pytest.mark.parametrize("file", ["trainer/state.json", "model/manifest.json"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(finished_copy, monkeypatch, file):
    run = RunDirectory(finished_copy.storage, finished_copy.name)
    original, path = Path.open, Path(run.path) / "step-000016" / file

    def open_or_fail(self, *arguments, **options):
        if self == path:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_or_fail)
    with pytest.raises(CheckpointError, match=r"step-000016 in .* cannot be read now.*try again"):
        find_resume(run)


def test_resuming_drops_rows_and_checkpoints_beyond(finished_copy, make_trainer, persist_in):
    config = finished_copy
    directory = Path(config.storage, config.name)
    before = read_rows(config)
    (directory / "step-000016" / "model" / "model.safetensors").unlink()
    (directory / "step-000099").mkdir()  # cut off while it was copied
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 17, "lo')  # cut off by a kill
    resumed = run_to(config, 16, make_trainer, persist_in)
    assert resumed.step == 16
    assert resumed.run.steps() == [12, 16]
    rows = read_rows(config)
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in before], abs=1e-6)


def test_accumulation_does_not_change_the_step(make_config, make_trainer):
    rows = []
    for device_batch in (2, 16):
        trainer = make_trainer(make_config(name=f"b{device_batch}", device_batch=device_batch))
        rows.append([trainer.train_step() for _ in range(3)])
    for few, many in zip(*rows, strict=True):
        assert few["loss"] == pytest.approx(many["loss"], abs=1e-5)
        assert few["grad_norm"] == pytest.approx(many["grad_norm"], rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(make_config, make_trainer):
    trainer = make_trainer(make_config())
    with torch.no_grad():
        trainer.decoder.embedding.weight.fill_(float("nan"))
    with pytest.raises(MHCError, match=r"loss is nan at step 1"):
        trainer.train_step()


def test_a_plain_model_trains_without_gates(make_config, make_trainer):
    config = make_config()
    model = config.model.model_copy(update={"mhc": None})
    trainer = make_trainer(config.model_copy(update={"model": model}))
    trainer.train_step()
    assert set(trainer.evaluate()) == {"val_loss", "val_bpb"}


def test_validation_equals_bits_per_byte_of_each_gate(finished_once, tiny_corpus):
    trainer = finished_once
    metrics = trainer.evaluate()
    texts = tiny_corpus.validation
    for suffix, gates in {"": None, "_gate_0": 0.0, "_gate_1": 1.0}.items():
        expected = bits_per_byte(trainer.decoder, tiny_corpus.tokenizer, texts, gates)
        assert metrics[f"val_bpb{suffix}"] == pytest.approx(expected, rel=1e-6)
    sizes = [len(text.encode()) for text in texts]
    tokens = [len(tiny_corpus.tokenizer.encode(text)) for text in texts]
    loss = metrics["val_bpb"] * math.log(2) * sum(sizes) / sum(tokens)
    assert metrics["val_loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["gates"] == pytest.approx(trainer.decoder.learned_gates().tolist(), abs=1e-5)


def test_shares_of_the_workers_cover_the_held_out_documents(tiny_corpus):
    parts = [
        Validation(tiny_corpus.validation, tiny_corpus.tokenizer, ProcessGroup(rank, 3), 32)
        for rank in range(3)
    ]
    assert sorted(text for part in parts for text in part.own) == sorted(tiny_corpus.validation)
    assert sum(part.own_bytes for part in parts) == parts[0].all_bytes


def test_validation_logs_the_routing(make_config, make_trainer):
    trainer = make_trainer(make_config())
    metrics = trainer.validation.evaluate(trainer.decoder)
    assert metrics["h_res_drift"] < 1e-6
    with torch.no_grad():
        trainer.decoder.connections()[2].base[8 + 1] += 3.0  # b_res from stream 0 to 1
    moved = trainer.validation.evaluate(trainer.decoder)
    assert moved["h_res_drift"] > 0.01
    assert moved["identity_distance"][2] > metrics["identity_distance"][2] + 0.01
    assert moved["identity_distance"][1] == pytest.approx(metrics["identity_distance"][1], abs=1e-5)
    assert trainer.decoder.watch is None


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


def test_bfloat16_is_close_to_float32_and_keeps_float32_weights(make_config, make_trainer):
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(make_config(precision=precision))
        losses.append([trainer.train_step()["loss"] for _ in range(4)])
        assert math.isfinite(trainer.evaluate()["val_loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.03)
    assert all(p.dtype == torch.float32 for p in trainer.decoder.parameters())


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


def test_the_first_steps_are_left_out_of_timing():
    progress = Progress(first_step=1, last_step=10, tokens_per_step=100)
    for step, seconds in enumerate([50.0, 50.0, 50.0, 1.0, 1.0], start=1):
        timing = progress.timing(step, seconds)
    assert timing["tokens_per_second"] == pytest.approx(100.0)
    row = {"step": 5, "loss": 1.0, "lr_multiplier": 1.0, "grad_norm": 1.0} | timing
    assert progress.step_line(row).startswith("step 05/10 | loss 1.0000 |")
    assert "ETA 0:00:05" in progress.step_line(row)
