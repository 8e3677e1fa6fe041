"""Where transformers' formats keep the rotary embedding, and what is refused of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mhc_model import CheckpointError
from mhc_model.conversion import convert
from mhc_model.conversion.rope import rope_base

THETA = 1e6
# How versions 4 and 5 write an ordinary embedding of this base.
PLAIN: dict[str, dict[str, Any]] = {
    "version 4": {"rope_theta": THETA},
    "version 4, no scaling": {"rope_theta": THETA, "rope_scaling": None},
    "version 4, named": {"rope_theta": THETA, "rope_scaling": {"type": "default"}},
    "in rope_scaling": {"rope_scaling": {"rope_type": "default", "rope_theta": THETA}},
    "version 5": {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}},
    "version 5, no type": {"rope_parameters": {"rope_theta": THETA}},
    "version 5, outside": {"rope_theta": THETA, "rope_parameters": {"rope_type": "default"}},
    "the inner one counts": {"rope_theta": 5.0, "rope_parameters": {"rope_theta": THETA}},
    "by layer type": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": THETA}}
    },
    "by layer type, outside": {
        "rope_theta": THETA,
        "rope_parameters": {"full_attention": {"rope_type": "default"}},
    },
    "whole share": {"rope_parameters": {"rope_theta": THETA, "partial_rotary_factor": 1.0}},
}


@pytest.mark.parametrize("form", list(PLAIN))
def test_the_base_is_found_wherever_it_is(form: str) -> None:
    assert rope_base(PLAIN[form], "config.json") == THETA


@pytest.mark.parametrize("form", [form for form in PLAIN if "layer" not in form])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
def test_transformers_finds_the_same(form: str, kind: type) -> None:
    entries = json.loads(json.dumps(PLAIN[form]))
    assert kind(**entries).rope_parameters["rope_theta"] == THETA


def test_no_base_is_transformers_default() -> None:
    assert rope_base({}, "config.json") == LlamaConfig().rope_parameters["rope_theta"]
    assert rope_base({"rope_parameters": {}, "rope_scaling": None}, "config.json") == 10000.0


SCALED = sorted({*ROPE_INIT_FUNCTIONS, "su", "mrope", "llama3", "none"} - {"default"})


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize(
    "form",
    [
        lambda p: {"rope_scaling": {**p, "type": p["rope_type"]}},
        lambda p: {"rope_scaling": {"type": p["rope_type"], "factor": 4.0}, "rope_theta": 1e6},
        lambda p: {"rope_parameters": p},
        lambda p: {"rope_parameters": {"full_attention": p}},
        lambda p: {"rope_parameters": {"full_attention": {"rope_theta": 1.0}, "sliding": p}},
    ],
)  # fmt: skip
def test_every_other_kind_is_refused_by_name(
    kind: str, form: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    entries = form({"rope_type": kind, "factor": 4.0, "rope_theta": THETA})
    with pytest.raises(CheckpointError, match=rf"config\.json: .*scaled \(rope_type '{kind}' in"):
        rope_base(entries, "config.json")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rope_scaling": {"factor": 4.0}}, r"rope_scaling has 'factor' \(4\.0\)"),
        ({"rope_parameters": {"full_attention": {"factor": 4.0}}}, "full_attention has 'factor'"),
        ({"rope_parameters": {"full_attention": {}, "factor": 2.0}}, "has 'factor'"),
        ({"rope_parameters": {"full_attention": {}, "chunked": None}}, "nothing for .chu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; "),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "0.5 in rope_parameters"),
        ({"rope_parameters": {"a": {"partial_rotary_factor": 0.5}}}, r"0.5 in rope_parameters\.a"),
        ({"rope_parameters": {"a": {"rope_theta": 1.0}, "b": {"rope_theta": 2.0}}},
         r"1 in rope_parameters\.a, 2 in rope_parameters\.b"),
        ({"rope_scaling": {"rope_theta": 1.0}, "rope_parameters": {"rope_theta": 2.0}}, "1 in"),
        ({"rope_theta": "1e6"}, "rope_theta is '1e6'"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_parameters": {"rope_theta": -1.0}}, r"-1\.0 in rope_parameters"),
        ({"rope_theta": True}, "rope_theta is True"),
        ({"rope_parameters": [1]}, "must be an object"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        rope_base(entries, "config.json")


@torch.no_grad()
def test_a_converted_model_turns_by_the_nested_base(
    theirs: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    theirs("llama").save_pretrained(tmp_path / "original")
    path = tmp_path / "original" / "config.json"
    entries = json.loads(path.read_text())
    inner = entries.pop("rope_parameters")
    entries.pop("rope_theta", None)
    path.write_text(json.dumps({**entries, "rope_parameters": {"full_attention": inner}}))
    converted = convert(tmp_path / "original", tmp_path / "plain", streams=0)
    assert converted.model.config.rope_base == inner["rope_theta"] == 50_000.0
    entries["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    path.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="layer_types has 'sliding_attention'"):
        convert(tmp_path / "original", tmp_path / "other", streams=0)
