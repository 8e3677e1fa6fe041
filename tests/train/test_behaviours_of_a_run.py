"""Behaviours in the configuration of a run: what is refused early, and what the driver says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mhc_model import ConfigError, DataError
from mhc_model.settings import load_settings, parse_command_line, to_yaml, validate_settings
from train.config import TrainConfig
from train.data import prepare_corpus
from train.estimate import estimate
from train.launch import check_same_run, known_behaviours, launch, with_behaviours, with_vocabulary
from train.records import RunDirectory

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = {"n_layers": 2, "n_heads": 2, "d_model": 16, "max_seq_len": 32, "mhc": {}}
BUILTIN = {"builtin_levels": [1], "builtin_count": 80, "validation_documents": 8, "vocab_size": 300}
BOTH = {"direct": {"gates": [0.0, 0.3]}, "worked": {"gates": [[0.7, 1.0], [0.5, 0.5]]}}
NAMED = {**BUILTIN, "builtin_behaviours": ["direct", "worked"]}


def make(**changes: Any) -> TrainConfig:
    values = {
        **{"name": "run", "steps": 2, "total_batch_tokens": 256, "device_batch": 4},
        **{"workers": {"num_workers": 1}, "model": MODEL, "data": NAMED, "behaviours": BOTH},
    }
    return validate_settings(TrainConfig, values | changes, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**MODEL, "mhc": None}}, r"behaviours has direct, worked, but .*plain"),
        (
            {"model": {**MODEL, "mhc": None}, "behaviours": {}},
            r"data\.builtin_behaviours has direct, worked, but .* plain .*data\.style_words",
        ),
        ({"behaviours": {"direct": BOTH["direct"]}}, r"has 'worked'; the names .* are direct"),
        ({"behaviours": {}}, r"has 'direct'; the names in behaviours are none"),
        ({"behaviours": {"learned": BOTH["direct"]}}, "'learned'; a name has"),
        (
            {"behaviours": {"x": {"gates": [[0, 1]] * 3}}, "data": BUILTIN},
            r"behaviour x has 3 ranges; allowed: 1 \(global\), 2 \(one per layer\) or 4",
        ),
        ({"behaviours": {"x": {"gates": [0.5, 0.1]}}}, "wrong order"),
        ({"behaviours": {"x": {"gates": [0.5, 1.5]}}}, "less than or equal to 1"),
        ({"data": {**NAMED, "builtin_behaviours": ["direct"] * 2}}, "'direct' is named twice"),
        (
            {"data": {"files": ["a.txt"], "builtin_behaviours": ["direct"]}},
            "but there are no built-in problems",
        ),
        (
            {"data": {"shards": "/a", "builtin_behaviours": ["direct"]}},
            r"beside builtin_behaviours.*--data\.builtin-behaviours",
        ),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_a_plain_model_may_be_told_in_words():
    config = make(model={**MODEL, "mhc": None}, data={**NAMED, "style_words": True})
    corpus = prepare_corpus(config.data, known_behaviours(config))
    assert corpus.groups == ()
    config = with_behaviours(with_vocabulary(config, corpus.tokenizer.vocab_size), corpus)
    assert config.model.behaviours == {}
    assert estimate(config).lines()[-1] == "behaviours as words: direct, worked"


def test_flags_reach_the_behaviours_of_a_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(make()))
    arguments = ["--config", str(path), "--behaviours.direct.gates", "0.1", "0.2"]
    config = parse_command_line(TrainConfig, "train", "", arguments)
    assert config.behaviours["direct"].gates == (0.1, 0.2)
    assert config.behaviours["worked"] == make().behaviours["worked"]


def test_the_dry_run_says_what_is_known():
    assert estimate(make()).lines()[-1] == (
        "behaviours: direct (gates 0 to 0.3, 50.0% of the rows), "
        "worked (gates 0.7 to 1, 0.5 to 0.5, 50.0% of the rows)"
    )
    without = estimate(make(behaviours={}, data=BUILTIN)).lines()
    assert not any("behaviour" in line for line in without)


def test_a_run_with_other_behaviours_is_another_run(tmp_path):
    config = make(storage=str(tmp_path))
    corpus = prepare_corpus(config.data, known_behaviours(config))
    config = with_behaviours(with_vocabulary(config, corpus.tokenizer.vocab_size), corpus)
    run = RunDirectory(config.storage, config.name)
    run.write_text("config.yaml", to_yaml(config))
    run.write_text("data.json", json.dumps(corpus.describe()))
    check_same_run(run, config, corpus)
    assert json.loads(run.read_text("data.json"))["groups"] == [
        {"group": "direct", "rows": 80},
        {"group": "worked", "rows": 80},
    ]
    # As it was resolved, it is the same again.
    again = load_settings(TrainConfig, Path(run.path, "config.yaml"))
    assert with_behaviours(again, corpus) == again == config
    other = make(behaviours={**BOTH, "direct": {"gates": [0.0, 0.4]}}, storage=str(tmp_path))
    other = with_behaviours(with_vocabulary(other, corpus.tokenizer.vocab_size), corpus)
    with pytest.raises(ConfigError, match=r"behaviours\.direct\.gates: \(0\.0, 0\.3\) -> \(0\.0,"):
        check_same_run(run, other, corpus)


def test_a_run_of_before_there_were_behaviours_goes_on(tmp_path):
    config = make(storage=str(tmp_path), behaviours={}, data=BUILTIN)
    corpus = prepare_corpus(config.data)
    config = with_vocabulary(config, corpus.tokenizer.vocab_size)
    run = RunDirectory(config.storage, config.name)
    values = config.model_dump(mode="json")
    del values["behaviours"], values["model"]["behaviours"]
    del values["data"]["builtin_behaviours"], values["data"]["style_words"]
    run.write_text("config.yaml", json.dumps(values))
    run.write_text("data.json", json.dumps(corpus.describe()))
    check_same_run(run, with_behaviours(config, corpus), corpus)
    assert "groups" not in corpus.describe()


def test_what_the_rows_say_is_checked_before_anything_starts(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"{i}?", "answer": f"{i}."} for i in range(60)]
    rows[7]["behaviour"] = "loud"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"files": [str(path)], "validation_share": 0.2, "vocab_size": 300}
    plain = {"model": {**MODEL, "mhc": None}, "behaviours": {}}
    for loss_on in ("all", "answers"):
        fields = {"storage": str(tmp_path), "data": data, "loss_on": loss_on}
        for changes, reason in (({}, "; .*direct, worked"), (plain, ", but .*plain")):
            with pytest.raises(DataError, match=rf"rows\.jsonl line 8 has .*'loud'{reason}"):
                launch(make(**fields, **changes), {"address": "nowhere:1"})
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_few_rows_of_a_group_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"{i}?", "answer": f"{i}."} for i in range(400)]
    rows[7]["gates"] = 0.5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"files": [str(path)], "validation_share": 0.01, "vocab_size": 300}
    with pytest.raises(DataError, match=r"the 1 training rows with gates 0\.5 .*line 8.* fill not"):
        launch(make(storage=str(tmp_path), data=data), {"address": "nowhere:1"})


def test_a_behaviour_without_rows_is_said(tmp_path, capsys):
    config = make(behaviours={**BOTH, "brief": {"gates": [0.4, 0.5]}})
    corpus = prepare_corpus(config.data, known_behaviours(config))
    found = with_behaviours(with_vocabulary(config, corpus.tokenizer.vocab_size), corpus)
    assert {name: b.share for name, b in found.model.behaviours.items()} == {
        **{"direct": 0.5, "worked": 0.5, "brief": 0.0}
    }
    assert "behaviour brief is declared, but no training row has it" in capsys.readouterr().out


def test_the_shipped_configuration_has_two():
    config = load_settings(TrainConfig, CONFIGS / "finetune_behaviours.yaml")
    assert list(config.behaviours) == ["direct", "worked"]
    assert config.loss_on == "answers"
