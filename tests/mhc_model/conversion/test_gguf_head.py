"""Heads of GGUF files that say more than the file can hold."""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import pytest

from mhc_model import CheckpointError
from mhc_model.conversion.gguf_head import check_head
from mhc_model.conversion.sources import read_source


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(pairs: bytes = b"", count: int = 1, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + pairs


def listed(kind: int, count: int, entries: bytes = b"") -> bytes:
    return text(b"general.tags") + struct.pack("<IIQ", 9, kind, count) + entries


def tensor(*shape: int, name: bytes = b"token_embd.weight") -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", 0, 0)


HOSTILE = {
    "a list of a billion numbers": head(listed(4, 10**9)),
    "a list of a billion bytes": head(listed(0, 10**9)),
    "a list of a billion texts": head(listed(8, 10**9, text(b"a") * 8)),
    "a list of 2**64 - 1 texts": head(listed(8, 2**64 - 1)),
    "lists in lists": head(listed(9, 1, struct.pack("<IQ", 9, 1) * 5000)),
    "a million lists": head(listed(9, 10**6, struct.pack("<IQ", 4, 0) * 100)),
    "a billion pairs": head(count=10**9),
    "a billion tensors": head(count=0, tensors=10**9),
    "a long key": head(struct.pack("<Q", 2**62)),
    "a key that is too long": head(text(b"k" * 70000) + struct.pack("<IB", 0, 0)),
    "a long text": head(text(b"general.name") + struct.pack("<IQ", 8, 2**63)),
    "an unknown type": head(text(b"general.name") + struct.pack("<IQ", 77, 0)),
    "a list of an unknown type": head(listed(77, 2)),
    "a large tensor": head(tensor(2**40, 2**20), count=0, tensors=1),
    "a tensor of many dimensions": head(tensor(*[1] * 60), count=0, tensors=1),
    "half a tensor": head(tensor(2)[:-8], count=0, tensors=1),
    "another version": head(version=1) + b"\0" * 40,
    "another format": b"PK\3\4" + b"\0" * 40,
    "the other byte order": b"GGUF" + struct.pack(">IQQ", 3, 0, 10**9),
    "nothing": b"",
    "a few bytes": b"GGUF\3",
    "a million numbers and more": head(listed(0, 2**20 + 1, b"\0" * (2**20 + 1))),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_it_is_refused_at_once(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE[what])
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(CheckpointError, match=r"model\.gguf is not a readable GGUF file: ."):
        read_source(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 100 * 1024  # KiB


def test_what_a_file_may_hold_passes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    pairs = text(b"general.name") + struct.pack("<I", 8) + text(b"a model")
    pairs += listed(8, 2, text(b"a") + text(b"bc")) + listed(4, 3, b"\0" * 12) + listed(0, 0)
    path.write_bytes(head(pairs, 4, 1) + tensor(4, 2) + b"\0" * 64)
    check_head(path)
