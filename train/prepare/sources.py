"""Where documents come from, divided into parts that can be read apart from each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.parquet

from mhc_model.errors import DataError
from train.data import KEYS, Document, Words, file_kind, line_at, read_documents, row_document
from train.prepare.config import PrepareConfig

# A .gz file holds about so many times its size of text; only small ones share a part.
GZIP_FACTOR = 3
PARQUET_ROWS = 128


class Piece(NamedTuple):
    """A range of one file or data set, with JSON values.

    Attributes:
        path: of the file, or name of the data set.
        unit: what start and stop count: bytes of a file, row groups of a parquet file, or shards of
            a data set.
        start: first of them.
        stop: behind the last of them; None is the end.
    """

    path: str
    unit: Literal["bytes", "row groups", "shards"]
    start: int
    stop: int | None


Part = tuple[Piece, ...]


@dataclass(frozen=True)
class CorpusSource:
    """A source that was found.

    Attributes:
        config: names it.
        revision: commit of a data set on the hub.
        data_set: `datasets.IterableDataset` of a data set; picklable, and asks the hub for nothing
            more than the data.
        files: size in bytes of each file.
    """

    config: PrepareConfig
    revision: str | None
    data_set: Any
    files: Mapping[str, int]

    def parts(self) -> list[Part]:
        """The whole source, about `part_bytes` of text at a time; the same source, the same parts.

        Raises:
            DataError: if a parquet file cannot be read.
        """
        size = self.config.part_bytes
        if self.data_set is not None:
            parts = self._parts_of_data_set()
        else:
            pieces = (piece for path in self.files for piece in _pieces(path, size))
            parts = list(_group(pieces, size))
        return parts[: self.config.max_parts]

    def documents(self, part: Iterable[Piece]) -> Iterator[Document | None]:
        """The documents of a part in their order; None for a row without text.

        Raises:
            DataError: naming the file or data set and what is wrong.
        """
        column = self.config.text_column
        words: Words = () if self.config.style_words else None
        for piece in part:
            if piece.unit == "bytes":
                yield from read_documents(piece.path, piece.start, piece.stop, column, words)
                continue
            parquet = piece.unit == "row groups"
            rows = _parquet_rows(piece, column) if parquet else self._data_set_rows(piece)
            for number, row in enumerate(rows):
                _check_columns(row, column, piece.path)
                try:
                    found = row_document(dict(row), column, words)
                except DataError as error:
                    raise DataError(f"{locate(piece, number)} {error}") from None
                yield None if found is None else found._replace(position=number)

    def _parts_of_data_set(self) -> list[Part]:
        # Its shards are of about one size, and small: row groups, where the files have them.
        name, count = self.config.source[0], self.data_set.num_shards
        size = 0
        for found in self.documents([Piece(name, "shards", 0, 1)]):
            size += 0 if found is None else len(found.text)
            if size >= self.config.part_bytes:
                break
        each = max(1, self.config.part_bytes // max(size, 1))
        return [
            (Piece(name, "shards", start, min(start + each, count)),)
            for start in range(0, count, each)
        ]

    def _data_set_rows(self, piece: Piece) -> Iterator[Any]:
        count = self.data_set.num_shards
        try:
            for index in range(piece.start, count if piece.stop is None else piece.stop):
                yield from self.data_set.shard(num_shards=count, index=index)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise DataError(
                f"data set {piece.path!r} could not be read ({type(error).__name__}: {error})"
            ) from error


def open_source(config: PrepareConfig, revision: str | None = None) -> CorpusSource:
    """Finds the source.

    Args:
        config: names it.
        revision: commit of an earlier start; None asks the hub.

    Raises:
        DataError: if it is not there or empty.
    """
    if not config.is_data_set:
        files = {path: os.path.getsize(path) for path in config.source}
        for path, size in files.items():
            if size == 0:
                raise DataError(f"{path} is empty")
        return CorpusSource(config, None, None, files)
    name = config.source[0]
    # Imported here: the library takes seconds to import and only data sets need it.
    import datasets

    try:
        builder = datasets.load_dataset_builder(
            name, config.data_set_subset, revision=revision or config.revision
        )
        # By row groups where the files have them; otherwise by files.
        data_set = builder.as_streaming_dataset(split=config.split).reshard()
    # Not found, no network, damaged; no such subset or split.
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"data set {name!r} could not be opened ({type(error).__name__}: {error}); give "
            f"another source, subset, split or revision"
        ) from error
    # The library asks the hub for the commit and puts it into the address of the files.
    commit = re.search(r"@([0-9a-f]{40})\b", builder.base_path or "")
    return CorpusSource(config, commit and commit[1], data_set, {})


def locate(piece: Piece, position: int) -> str:
    """Where a document of a piece is, for a person: file and line, or file and row."""
    if piece.unit == "bytes":
        return line_at(piece.path, position)
    if piece.unit == "shards":
        return f"data set {piece.path!r} row {position + 1} from its shard {piece.start}"
    with _open_parquet(piece.path) as file:
        groups = range(piece.start)
        before = sum(file.metadata.row_group(group).num_rows for group in groups)
    return f"{piece.path} row {before + position + 1}"


def _pieces(path: str, size: int) -> Iterator[tuple[Piece, int]]:
    """Ranges of a file and about how many bytes of text each holds."""
    if file_kind(path) == "parquet":
        yield from _parquet_pieces(path, size)
        return
    length = os.path.getsize(path)
    if path.endswith(".gz"):
        yield Piece(path, "bytes", 0, None), length * GZIP_FACTOR
        return
    for start in range(0, length, size):
        stop = start + size if start + size < length else None
        yield Piece(path, "bytes", start, stop), min(size, length - start)


def _parquet_pieces(path: str, size: int) -> Iterator[tuple[Piece, int]]:
    with _open_parquet(path) as file:
        metadata = file.metadata
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    start = total = 0
    for group, bytes_ in enumerate(sizes):
        if total and total + bytes_ > size:
            yield Piece(path, "row groups", start, group), total
            start, total = group, 0
        total += bytes_
    if start < len(sizes):
        yield Piece(path, "row groups", start, len(sizes)), total


def _group(pieces: Iterable[tuple[Piece, int]], size: int) -> Iterator[Part]:
    """Small files together in a part."""
    part: list[Piece] = []
    total = 0
    for piece, length in pieces:
        if part and total + length > size:
            yield tuple(part)
            part, total = [], 0
        part.append(piece)
        total += length
    if part:
        yield tuple(part)


def _open_parquet(path: str) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from None


def _parquet_rows(piece: Piece, column: str) -> Iterator[Mapping[str, Any]]:
    with _open_parquet(piece.path) as file:
        there = file.schema_arrow.names
        names = [
            *_columns(there, column, piece.path),
            *(key for key in KEYS if key in there and key != column),
        ]
        groups = range(piece.start, file.num_row_groups if piece.stop is None else piece.stop)
        try:
            for batch in file.iter_batches(PARQUET_ROWS, groups, names, use_threads=False):
                yield from batch.to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{piece.path} cannot be read: {error}") from None


def _columns(names: Sequence[str], column: str, where: str) -> list[str]:
    """Columns that hold the text."""
    if column in names:
        return [column]
    if "question" in names and "answer" in names:
        return ["question", "answer"]
    raise DataError(
        f"{where} has the columns {', '.join(names)}: neither {column!r} nor 'question' and "
        f"'answer'; give --text-column"
    )


def _check_columns(row: Mapping[str, Any], column: str, where: str) -> None:
    for name in _columns(list(row), column, where):
        if row[name] is not None and not isinstance(row[name], str):
            raise DataError(f"column {name!r} of {where} holds {type(row[name]).__name__}, no text")
