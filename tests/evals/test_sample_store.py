"""The samples of a run directory: one process, one run, whole lines."""

from __future__ import annotations

import pytest

from evals.results import read_samples
from evals.store import SampleStore
from mhc_model.errors import ConfigError, DataError


def test_two_processes_do_not_write_to_one_directory(tmp_path):
    store = SampleStore(tmp_path, {"a": 1})
    with pytest.raises(ConfigError, match="another process"):
        SampleStore(tmp_path, {"a": 1})
    store.close()
    SampleStore(tmp_path, {"a": 1}).close()


def test_damaged_files(tmp_path):
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"has samples\.jsonl but no run\.json"):
        SampleStore(tmp_path, {})
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match=r"samples\.jsonl line 1 is damaged"):
        SampleStore(tmp_path, {})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json cannot be read"):
        SampleStore(tmp_path, {})


def test_samples_keep_any_character_and_may_be_cut_off_within_one(tmp_path):
    row = {"id": "a", "completion": "x\u0085y\u2028z\u2029é"}
    store = SampleStore(tmp_path, {})
    store.add("gsm8k", row)
    store.close()
    whole = (tmp_path / "samples.jsonl").read_bytes()
    torn = "é".encode()[:1]
    (tmp_path / "samples.jsonl").write_bytes(whole + b'{"task": "gsm8k", "id": "' + torn)
    again = SampleStore(tmp_path, {})
    again.close()
    assert again.rows("gsm8k", ["a"]) == read_samples(tmp_path, "gsm8k")
    assert again.rows("gsm8k", ["a"]) == [{"task": "gsm8k", **row}]
    assert (tmp_path / "samples.jsonl").read_bytes() == whole
