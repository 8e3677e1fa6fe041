"""--dry-run: every shipped configuration, and whether the estimate is right."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

from mhc_model import Decoder
from mhc_model.settings import validate_settings
from train.config import TrainConfig
from train.estimate import estimate, saved_bytes

CONFIGS = Path(__file__).parents[2] / "configs"
SERVE_APPLICATION = "serve_app"  # for `serve deploy`; tests/serve reads it
SMALL = {
    **{"name": "x", "steps": 10, "total_batch_tokens": 512, "device_batch": 4},
    **{"data": {"builtin_levels": [1], "vocab_size": 300}, "workers": {"num_workers": 1}},
}
MODEL = {"vocab_size": 300, "n_layers": 3, "n_heads": 2, "d_model": 32, "max_seq_len": 64}


def command_of(path: Path) -> str:
    """The module that a comment of the file runs it with; otherwise told by a key."""
    text = path.read_text()
    found = re.search(rf"python -m (\S+) .*--config configs/{path.name}", text)
    return found.group(1) if found else "train" if "total_batch_tokens:" in text else "rl"


SHIPPED = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem != SERVE_APPLICATION)


def dry_run(command: str, path: Path) -> int:
    """The exit status of the command with --dry-run."""
    main = importlib.import_module(f"{command}.__main__").main
    try:
        return main(["--config", str(path), "--dry-run"])
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_dry_runs(path, capsys):
    assert dry_run(command_of(path), path) == 0
    output = capsys.readouterr().out
    assert yaml.safe_load(output)
    if command_of(path) == "train":
        comments = [line for line in output.splitlines() if line.startswith("# ")]
        lines = 5 if "behaviours" in path.read_text(encoding="utf-8") else 4
        assert len(comments) == lines or "which is not there (yet)" in comments[0]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_misspelt_key_names_the_near_one(path, tmp_path, capsys):
    values = yaml.safe_load(path.read_text())
    for key in values:
        wrong = {name if name != key else key[:-1] + "_" + key[-1]: values[name] for name in values}
        changed = tmp_path / "changed.yaml"
        changed.write_text(yaml.safe_dump(wrong))
        assert dry_run(command_of(path), changed) == 2
        assert f"did you mean {key!r}?" in capsys.readouterr().err


def test_a_misspelt_flag_names_the_near_one(capsys):
    for name, near in {
        "rl": "checkpoint",
        "serve": "checkpoint",
        "train": "total-batch-tokens",
    }.items():
        path = next(path for path in SHIPPED if command_of(path) == name)
        main = importlib.import_module(f"{name}.__main__").main
        with pytest.raises(SystemExit):
            main(["--config", str(path), f"--{near[:-1]}", "1"])
        assert f"--{near}" in capsys.readouterr().err


@pytest.mark.parametrize("mhc", [None, {}])
def test_the_counted_bytes_are_those_of_a_real_pass(mhc):
    config = validate_settings(TrainConfig, SMALL | {"model": MODEL | {"mhc": mhc}}, "test")
    decoder = Decoder(config.model).train()
    sizes: dict[int, int] = {}
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.data_ptr() for p in (*decoder.parameters(), *decoder.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        decoder.hidden(torch.zeros(4, 64, dtype=torch.int64))
    real = sum(size for number, size in sizes.items() if number not in own)
    assert saved_bytes(config, config.model) == pytest.approx(real, rel=0.02)
    two = saved_bytes(config, config.model.model_copy(update={"n_layers": 2}))
    one = saved_bytes(config, config.model.model_copy(update={"n_layers": 1}))
    assert two + (two - one) == pytest.approx(real, rel=0.02)


def test_figures_of_a_run():
    config = validate_settings(TrainConfig, SMALL | {"model": MODEL}, "test")
    figures = estimate(config)
    decoder = Decoder(config.model)
    assert figures.tokens == 5120
    assert figures.flops == 5120 * decoder.estimate_flops()
    hidden = sum(
        parameter.numel()
        for name, parameter in decoder.named_parameters()
        if "proj" in name and parameter.ndim == 2
    )
    # Muon keeps one moment of a matrix, AdamW two of the rest; besides weight and gradient.
    assert figures.state_bytes == 4 * (4 * decoder.count_parameters() - hidden)
    assert figures.seconds is None
    known = config.model_copy(update={"peak_tflops": 0.5, "expected_mfu": 0.2})
    assert estimate(known).seconds == pytest.approx(figures.flops / 1e11)
    checkpointing = config.model_copy(update={"gradient_checkpointing": True})
    assert estimate(checkpointing).activation_bytes < figures.activation_bytes


def test_depth_sets_the_model():
    def sizes(depth: int) -> tuple[int, int, int]:
        values = SMALL | {"depth": depth, "model": {"max_seq_len": 64, "n_layers": 3}}
        model = validate_settings(TrainConfig, values, "test").model
        assert model.max_seq_len == 64
        return model.n_layers, model.d_model, model.n_heads

    assert [sizes(depth) for depth in (4, 5, 12, 20, 26)] == [
        (4, 256, 2),
        (5, 384, 3),
        (12, 768, 6),
        (20, 1280, 10),
        (26, 1664, 13),
    ]
