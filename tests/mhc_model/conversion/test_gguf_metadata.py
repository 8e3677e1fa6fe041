"""What GGUF files leave out, and what their entries may be: as llama.cpp takes them."""

from __future__ import annotations

from typing import Any

import pytest

from mhc_model import CheckpointError
from mhc_model.conversion.gguf_metadata import Metadata, config_entries

WHOLE: dict[str, Any] = {
    "general.architecture": "qwen3",
    "qwen3.block_count": 2,
    "qwen3.attention.head_count": 4,
    "qwen3.attention.head_count_kv": 2,
    "qwen3.embedding_length": 64,
    "qwen3.feed_forward_length": 96,
    "qwen3.context_length": 128,
    "qwen3.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "qwen3.attention.key_length": 32,
    "qwen3.rope.freq_base": 1e6,
}


def entries(arch: str = "qwen3", without: str = "", **changes: Any) -> dict[str, Any]:
    values = {key.replace("qwen3", arch): value for key, value in WHOLE.items()}
    values |= {"general.architecture": arch}
    values |= {f"{arch}.{key.replace('__', '.')}": value for key, value in changes.items()}
    values.pop(f"{arch}.{without}", None)
    return config_entries(Metadata(values, "m.gguf"))


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("key", "entry", "value"),
    [
        ("rope.freq_base", "rope_theta", 10000.0),
        ("attention.head_count_kv", "num_key_value_heads", 4),
        ("attention.key_length", "head_dim", 16),
    ],
)
def test_the_defaults_of_the_format(arch: str, key: str, entry: str, value: float) -> None:
    assert entries(arch)[entry] != value
    assert entries(arch, without=key)[entry] == value


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "attention.head_count",
        "embedding_length",
        "feed_forward_length",
        "context_length",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_what_must_be_there(key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.gguf has no entry 'qwen3\.{key}'"):
        entries(without=key)


@pytest.mark.parametrize(
    "scaling",
    [
        {},
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
        {"rope__scaling__type": "linear"},
        {"rope__scaling__factor": 1.0},
        {"rope__scale_linear": 0.0},
        {"rope__dimension_count": 32, "attention__value_length": 32},
        {"expert_count": 0, "attention__sliding_window": 0},
        {"attention__head_count": [4, 4], "feed_forward_length": [96, 96]},
    ],
)
def test_what_says_nothing_new(scaling: dict[str, Any]) -> None:
    assert entries(**scaling) == entries()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope__scaling__factor": 4.0}, r"scaled \(rope\.scaling\.type 'linear', factor 4\.0\)"),
        ({"rope__scale_linear": 2.0}, "scaled .*'linear', factor 2"),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 8}, "'linear', factor 8"),
        ({"rope__scaling__type": "yarn"}, "scaled .*'yarn'"),
        ({"rope__scaling__type": "longrope"}, "scaled .*'longrope'"),
        ({"rope__dimension_count": 16}, "rope.dimension_count is 16"),
        ({"attention__value_length": 16}, "attention.value_length is 16"),
        ({"expert_count": 8}, "expert_count is 8"),
        ({"attention__sliding_window": 4096}, "sliding_window is 4096"),
        ({"logit_scale": 0.5}, r"logit_scale is 0\.5"),
        ({"attention__head_count": [4, 2]}, r"head_count is \[4, 2\]; it must be a whole number"),
        ({"block_count": "2"}, "block_count is '2'; it must be a whole number"),
        ({"block_count": True}, "block_count is True"),
        ({"block_count": 0}, "block_count is 0; supported: 1 and more"),
        ({"embedding_length": []}, r"embedding_length is \[\]"),
        ({"rope__freq_base": "x"}, "freq_base is 'x'; it must be a number"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{message}"):
        entries(**change)
