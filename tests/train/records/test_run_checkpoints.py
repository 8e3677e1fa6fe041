"""Which checkpoints stay and which is the best; those that were cut off, altered or lost."""

import errno
import json
from pathlib import Path

import pytest

from mhc_model import CheckpointError
from train.records import Best, RunDirectory, find_resume, step_name


def with_bits(trainer, bits: dict[int, float]):
    """The trainer, validating to figures that are given by step."""
    trainer.evaluate = lambda: {"val_loss": 1.0, "val_bpb": bits[trainer.step]}
    return trainer


BITS = {2: 3.0, 4: 2.0, 6: 1.0, 8: 4.0, 10: 2.5, 12: 2.25}


def test_the_best_checkpoint_stays_beside_the_last(make_config, make_trainer, persist_in):
    config = make_config(steps=12, checkpoint_every=4, eval_every=2)
    trainer = with_bits(make_trainer(config), BITS)
    trainer.fit(persist_in(trainer.run))
    # Step 6 is between two intervals: it was saved for being the best.
    assert trainer.run.steps() == [6, 8, 12]
    best = json.loads((Path(trainer.run.path) / "best.json").read_text())
    assert best == {"step": 6, "val_bpb": 1.0}
    config = make_config(name="plain", steps=12, checkpoint_every=4, eval_every=2, keep_best=False)
    plain = with_bits(make_trainer(config), BITS)
    plain.fit(persist_in(plain.run))
    assert plain.run.steps() == [8, 12]
    assert not (Path(plain.run.path) / "best.json").exists()


def test_a_resumed_run_knows_the_best_so_far(make_config, make_trainer, persist_in):
    config = make_config(steps=12, checkpoint_every=4, eval_every=2)
    trainer = with_bits(make_trainer(config), BITS)
    persist = persist_in(trainer.run)

    def stop_after_8(step, metrics, directory):
        persist(step, metrics, directory)
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(stop_after_8)
    resumed = with_bits(make_trainer(config), BITS)
    resumed.resume()
    assert resumed.step == 8
    resumed.fit(persist)
    assert resumed.run.steps() == [6, 8, 12]
    assert Best(resumed.run).step == 6
    # A best checkpoint that is gone is the best no more.
    resumed.run.delete_step(6)
    assert Best(resumed.run).step == 12
    assert json.loads((Path(resumed.run.path) / "best.json").read_text())["step"] == 12


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
