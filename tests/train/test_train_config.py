"""The configuration of a run: what is refused, the schedule, and the shipped files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhc_model.errors import ConfigError
from mhc_model.settings import differences, load_settings, parse_command_line, validate_settings
from train.__main__ import main
from train.config import FREE_ON_RESUME, TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "name": "small",
    "steps": 10,
    "total_batch_tokens": 256,
    "device_batch": 4,
    "model": {"max_seq_len": 32, "n_layers": 2, "n_heads": 2, "d_model": 16},
}


def make(**changes: object) -> TrainConfig:
    return validate_settings(TrainConfig, SMALL | changes, "test")


@pytest.mark.parametrize(
    ("plain", "mhc"),
    [
        ("demo_baseline", "demo_mhc"),
        ("first_run_baseline", "first_run_mhc"),
        ("baseline_d12", "mhc_d12"),
        ("baseline_cpu", "mhc_cpu"),
    ],
)
def test_pairs_differ_only_in_what_a_plain_model_has_not(plain, mhc):
    before, after = (
        load_settings(TrainConfig, CONFIGS / f"{name}.yaml").model_dump() for name in (plain, mhc)
    )
    for config in (before, after):
        for key in ("name", "device_batch", "gate_noise_share"):
            del config[key]
        del config["model"]["mhc"], config["optimizer"]["mhc_lr"]
    # What gates say to one model, words say to the other.
    assert before["data"].pop("style_words") == bool(before["behaviours"])
    assert not after["data"].pop("style_words")
    assert before == after


def test_d12_has_the_values_of_the_plan():
    config = load_settings(TrainConfig, CONFIGS / "mhc_d12.yaml")
    model = config.model
    assert (model.n_layers, model.d_model, model.n_heads, model.max_seq_len) == (12, 768, 6, 1024)
    assert config.total_batch_tokens == 524_288
    assert (config.precision, config.compile) == ("bfloat16", True)
    assert (config.workers.num_workers, config.workers.use_gpu) == (8, True)


def test_indivisible_batch_names_the_numbers(capsys):
    with pytest.raises(ConfigError, match=r"300 is not a multiple of 256 = .*4 x .*32 x .*2"):
        make(total_batch_tokens=300)
    arguments = ["--config", str(CONFIGS / "demo_mhc.yaml"), "--total-batch-tokens", "1000"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "1000 is not a multiple" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "two words"])
def test_bad_names_are_refused(name):
    with pytest.raises(ConfigError, match="name"):
        make(name=name)


def test_no_data_is_refused():
    with pytest.raises(ConfigError, match="no data"):
        make(data={})
    with pytest.raises(ConfigError, match="held out"):
        make(data={"files": ["a.txt"], "validation_share": 0.0})


def test_storage_becomes_absolute_and_a_uri_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make(storage="runs").storage == str(tmp_path / "runs")
    assert make(storage="s3://bucket/runs").storage == "s3://bucket/runs"


def test_overrides_reach_nested_fields():
    config = parse_command_line(
        TrainConfig,
        "train",
        "",
        [
            *("--config", str(CONFIGS / "demo_mhc.yaml"), "--name", "mine"),
            *("--optimizer.lr", "0.5", "--data.files", "a.txt", "b.jsonl.gz"),
        ],
    )
    assert (config.name, config.optimizer.lr) == ("mine", 0.5)
    assert config.data.files == ("a.txt", "b.jsonl.gz")


def differing(before, now):
    found = differences(before.model_dump(), now.model_dump(), FREE_ON_RESUME)
    return [str(difference) for difference in found]


def test_resume_may_change_length_and_place_but_not_the_model():
    before = make()
    longer = make(
        steps=20, workers={"num_workers": 1}, ray={"num_cpus": 4}, keep_last=5, device_batch=2
    )
    assert differing(before, longer) == []
    other = make(model=SMALL["model"] | {"n_layers": 3}, data={"builtin_levels": [2]}, seed=1)
    assert differing(before, other) == [
        "seed: 0 -> 1",
        "model.n_layers: 2 -> 3",
        "data.builtin_levels: (1,) -> (2,)",
    ]


@pytest.mark.parametrize("field", [{"d_mlp": 5504}, {"d_head": 64}, {"n_kv_heads": 1}])
def test_depth_leaves_no_size_of_another_width(field):
    name, value = next(iter(field.items()))
    with pytest.raises(ConfigError, match=rf"depth is 8, but model\.{name} is {value}"):
        make(depth=8, model=SMALL["model"] | field)
    config = make(depth=8, storage="/runs")
    again = make(**config.model_dump())  # as config.yaml has it
    assert again.model_dump() == config.model_dump()


@given(
    steps=st.integers(1, 300), warmup=st.integers(0, 50), warmdown=st.floats(0, 1, allow_nan=False)
)
def test_learning_rate_rises_stays_and_falls(steps, warmup, warmdown):
    config = make(steps=steps, warmup_steps=warmup, warmdown_share=warmdown)
    rates = [config.lr_multiplier(step) for step in range(1, steps + 1)]
    assert all(0.0 < rate <= 1.0 for rate in rates)
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] <= 1 / max(warmup, 1)
    assert rates[-1] <= 1 / max(warmdown * steps, 1)
    if warmup <= steps * (1 - warmdown) - 1:
        assert max(rates) == 1.0
