"""Files that are not what they should be: each is an error in words, and costs little."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mhc_model import CheckpointError, DataError
from mhc_model.files import (
    parse_object,
    plain_names,
    read_file,
    read_object,
    stored_tensors,
    token_ids,
    without_panics,
)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to a device", "missing"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    for read in (read_file, read_object, stored_tensors):
        with pytest.raises(CheckpointError, match=rf"{path}.*(no regular file|cannot be read)"):
            read(path)
    if kind == "missing":
        path.write_text("{}")
        (tmp_path / "link").symlink_to(path)
        assert read_object(tmp_path / "link") == {}


def test_a_size_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", limit=5) == b"12345"
    with pytest.raises(CheckpointError, match="more than 4 bytes"):
        read_file(tmp_path / "a", limit=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nests too deep"),
        (b'{"a":' * 200_000, "nests too deep"),
        (b"[" * 1000 + b"]" * 1000, "holds list|nests too deep"),
        (b'{"n": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "holds list, expected an object"),
        (b"null", "holds NoneType"),
        (b"{}\0", "cannot be read"),
    ],
)
def test_json_that_is_no_object(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json.*({message})"):
        parse_object(content, "config.json")


def test_a_byte_order_mark_is_no_content() -> None:
    assert parse_object('\ufeff{"a": 1}'.encode(), "x") == {"a": 1}


def test_token_ids_of_a_file() -> None:
    assert token_ids(None, "x") == []
    assert token_ids(3, "x") == [3]
    assert token_ids([3, 0], "x") == [3, 0]
    for bad in ("3", -1, 2**31, 1.5, True, [None], {"a": 1}, [[1]]):
        with pytest.raises(CheckpointError, match=r"x is .*token id"):
            token_ids(bad, "x")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0", None, 3])
def test_names_that_lead_elsewhere(name: object) -> None:
    with pytest.raises(CheckpointError, match="no plain name"):
        plain_names(["a", name], "index.json")


def test_heads_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.bfloat16)}, path)
    found = stored_tensors(path)
    assert (found["a"].shape, found["a"].dtype, found["b"].dtype) == ((2, 3), "F32", "BF16")
    for head in (
        (2**63).to_bytes(8, "little"),
        (100 * 2**20).to_bytes(8, "little"),
        (10).to_bytes(8, "little") + b"[" * 10,
        b"",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        (2).to_bytes(8, "little") + b"{}" + b"x",
    ):
        path.write_bytes(head)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable"):
            stored_tensors(path)
    entry = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}
    content = json.dumps({"a": entry}).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + b"\0" * 4)
    with pytest.raises(CheckpointError, match="not a readable"):
        stored_tensors(path)


def test_a_panic_is_an_error() -> None:
    import tiktoken

    ranks = {bytes([i]): i for i in range(256)}
    empty = tiktoken.Encoding("x", pat_str="", mergeable_ranks=ranks, special_tokens={})
    with pytest.raises(DataError, match="library failed"):
        without_panics(lambda: empty.encode_ordinary("ab"), DataError)
    with pytest.raises(KeyboardInterrupt):
        without_panics(lambda: (_ for _ in ()).throw(KeyboardInterrupt()), DataError)
