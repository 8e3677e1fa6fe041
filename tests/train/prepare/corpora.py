"""Sources for the tests of this room, and what became of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from train.data import ShardedTokens

TEXTS = [f"Text {i}: größer, Ж, 漢字 \N{SLOTH}, {i * i} words. " * (i % 9 + 1) for i in range(300)]


def write_rows(path: Path, texts: list[str] = TEXTS) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pa.parquet.write_table(pa.table(dict(columns)), path, row_group_size=25)
    return path


def texts_of(out: str, split: str = "both") -> list[str]:
    """The documents in the shards, in order; each must begin with the separator."""
    shards = ShardedTokens(out)
    tokenizer = shards.tokenizer()
    found = []
    for name in ("train", "validation") if split == "both" else (split,):
        for entry in getattr(shards.manifest, name):
            tokens = np.fromfile(Path(out, entry.file), shards.dtype)
            starts = np.flatnonzero(tokens == tokenizer.bos_id)
            assert starts[0] == 0
            ends = [*starts[1:], len(tokens)]
            parts = [tokens[s:e].tolist() for s, e in zip(starts, ends, strict=True)]
            found += [tokenizer.decode(part) for part in parts]
            assert (len(parts), len(tokens)) == (entry.documents, entry.tokens)
            assert entry.bytes == sum(len(text.encode()) for text in found[-len(parts) :])
            assert hashlib.sha256(tokens.tobytes()).hexdigest() == entry.sha256
    return found


def content(out: str | Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in Path(out).rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}
