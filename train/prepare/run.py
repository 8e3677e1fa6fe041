"""From a source to a directory of shards, in steps that an interruption does not undo.

    tokenizer/          1. loaded or trained
    plan.json           2. the settings and all parts; from here on a restart must have the same
    parts/00012.json    3. a part is finished when its record is there, after its shards
    manifest.json       4. written when all are; what is only for restarts is then deleted

Every file is written under a temporary name and renamed, and every part depends on the source and
the settings only, so a run that was killed and started again ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs

from mhc_model.errors import ConfigError, DataError
from mhc_model.files import locked_directory
from mhc_model.running import Heartbeat, on_stop
from mhc_model.settings import differences
from mhc_model.tokenizer import Tokenizer
from train.data import (
    BEGUN,
    BYTE_TABLE,
    FORMAT,
    MANIFEST,
    TOKENIZER,
    Manifest,
    byte_table,
    choose_tokenizer,
    describe_group,
    open_directory,
    tokenizer_sha256,
)
from train.prepare.config import PrepareConfig
from train.prepare.part import PARTS, SPLITS, Job, write_file
from train.prepare.sources import CorpusSource, Part, locate, open_source

Execute = Callable[[Job, Mapping[int, Part]], Iterator[tuple[int, dict[str, Any]]]]
"""execute(job, parts) does job.write_part for every part, by number, and yields the records as they
come, in any order."""

# Seconds between two lines of progress.
REPORT_EVERY = 5.0


def one_after_another(job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The parts in this process."""
    for number, part in parts.items():
        yield number, job.write_part(number, part)


def prepare(
    config: PrepareConfig,
    execute: Execute = one_after_another,
    ready: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Manifest:
    """Writes the shards of a source, or the rest of them.

    Args:
        config: what and where.
        execute: does the parts.
        ready: within it `execute` can work; entered before anything is written.

    Returns:
        The manifest, also of a corpus that was complete.

    Raises:
        ConfigError: if `out` holds a corpus of other settings.
        DataError: if the source is missing or malformed, or gives nothing to train on or hold out.
    """
    filesystem, base = open_directory(config.out)
    with ExitStack() as stack:
        try:
            if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
                taken = f"another train.prepare is at work in {config.out}"
                stack.enter_context(locked_directory(Path(base), taken))
            else:
                _create(filesystem, base, config)
        except OSError as error:
            raise ConfigError(f"out {config.out!r} cannot be written: {error}") from None
        return _prepare(config, execute, ready, filesystem, base)


def _prepare(
    config: PrepareConfig,
    execute: Execute,
    ready: Callable[[], AbstractContextManager[None]],
    filesystem: pyarrow.fs.FileSystem,
    base: str,
) -> Manifest:
    begun = _read_json(filesystem, f"{base}/{BEGUN}")
    if begun is not None:
        _check_same(config, begun)
    source = open_source(config, None if begun is None else begun["revision"])
    parts = source.parts()
    settings = {
        "settings": config.deciding(),
        "revision": source.revision,
        "files": dict(source.files),
        "parts": [[list(piece) for piece in part] for part in parts],
    }
    if begun is not None and any(begun[key] != value for key, value in settings.items()):
        raise ConfigError(
            f"the source has changed since {config.out} was begun (files, their sizes, or "
            f"parts of them); delete that directory, or give another out"
        )
    manifest = None if begun is None else _read_json(filesystem, f"{base}/{MANIFEST}")
    if begun is not None:
        tokenizer = _read_tokenizer(config, filesystem, base, begun["tokenizer"])
    if manifest is None:
        with ready():
            _create(filesystem, f"{base}/{PARTS}", config)
            on_stop(f"the same command goes on in {config.out}: parts that are finished stay in it")
            if begun is None:
                tokenizer = _make_tokenizer(source, parts)
                _save_tokenizer(tokenizer, filesystem, base)
                begun = {"format": FORMAT, "tokenizer": tokenizer_sha256(tokenizer), **settings}
                write_file(filesystem, f"{base}/{BEGUN}", _to_json(begun))
            dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
            job = Job(source, tokenizer, dtype, config.out)
            records = _write_parts(job, parts, execute, filesystem, base)
        manifest = _make_manifest(job, begun, parts, records)
        write_file(filesystem, f"{base}/{BYTE_TABLE}", byte_table(tokenizer))
        write_file(filesystem, f"{base}/{MANIFEST}", _to_json(manifest))
    _clean_up(filesystem, base)
    result = Manifest.model_validate(manifest)
    _say_what_is_there(config.out, result)
    return result


def _create(filesystem: pyarrow.fs.FileSystem, path: str, config: PrepareConfig) -> None:
    try:
        filesystem.create_dir(path, recursive=True)
    except OSError as error:
        raise ConfigError(f"out {config.out!r} cannot be written: {error}") from None


def _check_same(config: PrepareConfig, begun: Mapping[str, Any]) -> None:
    if different := differences(begun["settings"], config.deciding()):
        raise ConfigError(
            f"{config.out} was begun with other settings: {'; '.join(map(str, different))}; give "
            f"the same, another out, or delete that directory"
        )


def _make_tokenizer(source: CorpusSource, parts: Sequence[Part]) -> Tokenizer:
    config = source.config
    if config.tokenizer == "train":
        print(f"training a tokenizer of {config.vocab_size} ids", flush=True)
    return choose_tokenizer(config, _sample(source, parts))


def _sample(source: CorpusSource, parts: Sequence[Part]) -> Iterator[str]:
    """Training documents from the beginning of every part, `tokenizer_bytes` in all."""
    config = source.config
    total = 0
    for number, part in enumerate(parts, start=1):
        for document in source.documents(part):
            if total * len(parts) >= config.tokenizer_bytes * number:
                break
            if document and not document.is_held_out(config.validation_share, config.seed):
                total += len(document.text.encode("utf-8", "surrogatepass"))
                yield document.text


def _save_tokenizer(tokenizer: Tokenizer, filesystem: pyarrow.fs.FileSystem, base: str) -> None:
    filesystem.create_dir(f"{base}/{TOKENIZER}", recursive=True)
    for name, content in tokenizer.files.items():
        write_file(filesystem, f"{base}/{TOKENIZER}/{name}", content)


def _read_tokenizer(
    config: PrepareConfig, filesystem: pyarrow.fs.FileSystem, base: str, sha256: str
) -> Tokenizer:
    directory = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    try:
        pyarrow.fs.copy_files(f"{base}/{TOKENIZER}", str(directory), source_filesystem=filesystem)
        tokenizer = Tokenizer.from_directory(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if tokenizer_sha256(tokenizer) != sha256:
        raise DataError(f"{config.out}/{TOKENIZER} is not the one that the shards were begun with")
    return tokenizer


def _write_parts(
    job: Job,
    parts: Sequence[Part],
    execute: Execute,
    filesystem: pyarrow.fs.FileSystem,
    base: str,
) -> list[dict[str, Any]]:
    """Records of all parts, in order; those that are there are not done again."""
    records = _finished(job, filesystem, base)
    todo = {number: part for number, part in enumerate(parts) if number not in records}
    print(
        f"{len(parts)} parts of about {job.source.config.part_bytes:,} bytes, {len(records)} of "
        f"them finished; {job.tokenizer.vocab_size:,} token ids, {job.dtype}",
        flush=True,
    )
    progress = _Progress(len(parts), len(records))
    with Heartbeat(f"{len(todo)} parts to do"):
        for number, record in execute(job, todo) if todo else ():
            records[number] = record
            progress.add(record)
    return [records[number] for number in range(len(parts))]


def _finished(job: Job, filesystem: pyarrow.fs.FileSystem, base: str) -> dict[int, dict[str, Any]]:
    """Records of the parts whose shards are there with their sizes."""
    records: dict[int, dict[str, Any]] = {}
    itemsize = np.dtype(job.dtype).itemsize
    for info in filesystem.get_file_info(pyarrow.fs.FileSelector(f"{base}/{PARTS}")):
        name = re.fullmatch(r"(\d+)\.json", info.base_name)
        if name is None:
            continue
        record = _read_json(filesystem, info.path)
        entries = [entry for split in SPLITS for entry in _entries(record or {}, split)]
        infos = filesystem.get_file_info([f"{base}/{entry['file']}" for entry in entries])
        if all(i.size == e["tokens"] * itemsize for i, e in zip(infos, entries, strict=True)):
            records[int(name[1])] = record
    return records


def _entries(record: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    """Shards of a part; records of before there were several of a split have the one itself."""
    entries = record.get(split, [])
    return entries if isinstance(entries, list) else [entries]


def _make_manifest(
    job: Job,
    begun: Mapping[str, Any],
    parts: Sequence[Part],
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    entries = {split: [e for r in records for e in _entries(r, split)] for split in SPLITS}
    if not all(entries.values()):
        counts = {split: sum(e["documents"] for e in entries[split]) for split in SPLITS}
        raise DataError(
            f"{counts['train']} training and {counts['validation']} held-out documents: both need "
            f"at least one; give more data, or another validation_share than "
            f"{job.source.config.validation_share}, and another out"
        )
    return {
        "format": FORMAT,
        "dtype": job.dtype,
        "vocab_size": job.tokenizer.vocab_size,
        "tokenizer_sha256": begun["tokenizer"],
        "byte_table_sha256": hashlib.sha256(byte_table(job.tokenizer)).hexdigest(),
        "skipped": sum(record["skipped"] for record in records),
        "settings": {**begun["settings"], "revision": begun["revision"]},
        **_first_rows(parts, records),
        **entries,
    }


def _first_rows(
    parts: Sequence[Part], records: Sequence[Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Where every group has its first row; nothing where no row has a group."""
    first: dict[str, dict[str, Any]] = {}
    for part, record in zip(parts, records, strict=True):
        for group, piece, position in record.get("groups", ()):
            if str(group) not in first:
                where = locate(part[piece], position)
                first[str(group)] = {"group": group, "first": where}
    return {"groups": list(first.values())} if first else {}


def _clean_up(filesystem: pyarrow.fs.FileSystem, base: str) -> None:
    """Deletes the records, and what interrupted attempts have left."""
    for info in filesystem.get_file_info(pyarrow.fs.FileSelector(base)):
        if ".tmp-" in info.base_name:
            filesystem.delete_file(info.path)
        elif info.base_name == PARTS:
            filesystem.delete_dir(info.path)


class _Progress:
    """One line every few seconds, and one for the last part."""

    def __init__(self, parts: int, finished: int) -> None:
        self._parts, self._before, self._finished = parts, finished, finished
        self._tokens = self._bytes = 0
        self._start = self._reported = time.monotonic()

    def add(self, record: Mapping[str, Any]) -> None:
        self._finished += 1
        for split in SPLITS:
            self._tokens += sum(entry["tokens"] for entry in _entries(record, split))
            self._bytes += sum(entry["bytes"] for entry in _entries(record, split))
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY and self._finished < self._parts:
            return
        self._reported = now
        seconds = max(now - self._start, 1e-9)
        left = (self._parts - self._finished) * seconds / (self._finished - self._before)
        print(
            f"part {self._finished}/{self._parts} | {self._tokens:,} tokens | "
            f"{self._bytes / seconds / 1e6:.1f} MB/s | {self._tokens / seconds:,.0f} tokens/s | "
            f"{left:.0f} s left",
            flush=True,
        )


def _say_what_is_there(location: str, manifest: Manifest) -> None:
    for split, entries in (("training", manifest.train), ("held-out", manifest.validation)):
        print(
            f"{split}: {sum(e.tokens for e in entries):,} tokens of "
            f"{sum(e.documents for e in entries):,} documents, "
            f"{sum(e.bytes for e in entries):,} bytes, in {len(entries)} shards",
            flush=True,
        )
    for found in manifest.groups:
        rows = sum(entry.documents for entry in manifest.train if entry.group == found.group)
        print(f"{describe_group(found.group)}: {rows:,} training documents", flush=True)
    if manifest.skipped:
        print(f"{manifest.skipped:,} rows had no text and were skipped", flush=True)
    print(f"complete: {location}; train on it with --data.shards {location}", flush=True)


def _read_json(filesystem: pyarrow.fs.FileSystem, path: str) -> dict[str, Any] | None:
    """Content of a JSON file, None if there is none."""
    try:
        with filesystem.open_input_stream(path) as stream:
            return json.loads(stream.read())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); delete the directory") from None


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
