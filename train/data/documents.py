"""Documents out of files: text cut at blank lines, rows with text or with question and answer.

A row may say under which gates it is learned. A file that is not compressed can be read in ranges
of bytes, by several processes at once: a range begins where the one before it ends, whoever asks.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from evals.problems import Problem, with_words
from evals.tasks import document
from mhc_model.errors import DataError
from mhc_model.files import read_rows
from train.data.groups import Group, Words, describe_group, row_group, split_words

# A text file is cut at blank lines into documents of at least this size. Several contexts long, so
# that little is lost, and short enough that a share of one book can be held out.
TEXT_DOCUMENT_CHARACTERS = 8192
# Where there are no blank lines it is cut at ends of lines, and lines of this size are cut too.
LONGEST_TEXT_DOCUMENT = 131_072
LINE_BYTES = 65_536
# How far a range looks for its beginning.
SEARCH_BYTES = 1 << 20


class Document(NamedTuple):
    """What a model reads of one row, or one piece of a text.

    Attributes:
        text: as it is learned.
        group: the gates that it is learned under.
        question: of a row with a group, or with words in its place; None of others.
        position: first byte of its row in the file, where that has rows.
    """

    text: str
    group: Group | None = None
    question: str | None = None
    position: int = 0

    def is_held_out(self, share: float, seed: int = 0) -> bool:
        """As the function of this name; a question is on one side, however it is answered."""
        return is_held_out(self.text if self.question is None else self.question, share, seed)


def is_held_out(text: str, share: float, seed: int = 0) -> bool:
    """Whether a document belongs to the held-out share.

    Decided by the text itself: copies of a document are on the same side, in every file.

    Args:
        text: the document.
        share: of all documents, in [0, 1].
        seed: another one holds out others.
    """
    salt = b"" if seed == 0 else b"%d\0" % seed
    digest = hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def file_kind(path: str) -> str:
    """What the name of a file says that it holds: "jsonl", "parquet" or "text"."""
    name = path.removesuffix(".gz")
    for kind in ("jsonl", "parquet"):
        if name.endswith("." + kind):
            return kind
    return "text"


def read_documents(
    path: str,
    start: int = 0,
    stop: int | None = None,
    column: str = "text",
    words: Words = None,
) -> Iterator[Document]:
    """Documents of a text or JSON-lines file, plain or .gz, in constant memory.

    Args:
        path: *.jsonl or *.jsonl.gz has rows; everything else is text.
        start: first byte; the documents begin with the first that starts at it or later.
        stop: where the next range begins; None reads to the end. A .gz file has one range.
        column: key of a row's text; rows without it need question and answer.
        words: behaviours that are written behind questions.

    Raises:
        DataError: naming the file, the line and what is wrong; or if a whole file is empty.
    """
    rows = file_kind(path) == "jsonl"
    find = line_start if rows else paragraph_start
    first, last = find(path, start), None if stop is None else find(path, stop)
    count = 0
    documents = (
        _read_rows(path, first, last, column, words) if rows else _read_text(path, first, last)
    )
    for found in documents:
        count += 1
        yield found
    if count == 0 and start == 0 and stop is None:
        raise DataError(f"{path} is empty")


def line_start(path: str, position: int) -> int:
    """Start of the first line behind the byte at `position`; 0 for 0."""
    if position == 0:
        return 0
    with open(path, "rb") as file:
        file.seek(position)
        file.readline()
        return file.tell()


def paragraph_start(path: str, position: int) -> int:
    """Where a document may start behind the byte at `position`; 0 for 0.

    Behind a blank line; if none is near, at the start of a line; in one endless line, of a
    character. It depends on `position` only and never falls while that rises, so ranges that share
    a border share no text and miss none.
    """
    if position == 0:
        return 0
    with open(path, "rb") as file:
        file.seek(position)
        window = file.read(SEARCH_BYTES)
    line = window.find(b"\n") + 1
    at = line
    while at and at < len(window):
        end = window.find(b"\n", at) + 1
        if end and not window[at:end].strip():
            return position + end
        at = end
    if line:
        return position + line
    character = next((i for i, byte in enumerate(window) if byte & 0xC0 != 0x80), len(window))
    return position + character


def _read_lines(path: str, start: int, stop: int | None) -> Iterator[bytes]:
    """Lines of a text, in pieces of `LINE_BYTES`."""
    try:
        with cast(BinaryIO, gzip.open(path) if path.endswith(".gz") else open(path, "rb")) as file:
            file.seek(start)
            position = start
            while stop is None or position < stop:
                line = file.readline(
                    LINE_BYTES if stop is None else min(LINE_BYTES, stop - position)
                )
                if not line:
                    return
                position += len(line)
                yield line
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
        raise DataError(f"{path} cannot be read: {error}") from None


def _read_text(path: str, start: int, stop: int | None) -> Iterator[Document]:
    # A byte order mark at the beginning is no text.
    decoder = codecs.getincrementaldecoder("utf-8" if start else "utf-8-sig")()
    parts: list[str] = []
    size = 0
    try:
        for line in _read_lines(path, start, stop):
            text = decoder.decode(line.replace(b"\r\n", b"\n"))
            parts.append(text)
            size += len(text)
            if size >= TEXT_DOCUMENT_CHARACTERS and (
                not text.strip() or size >= LONGEST_TEXT_DOCUMENT
            ):
                yield Document("".join(parts))
                parts, size = [], 0
        parts.append(decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    rest = "".join(parts)
    if rest.strip():
        yield Document(rest)


def _read_rows(
    path: str, start: int, stop: int | None, column: str, words: Words
) -> Iterator[Document]:
    for row in read_rows(path, start, stop):
        try:
            found = row_document(row.value(), column, words)
            if found is None:
                shown = repr(row.content[:80].decode("utf-8", "replace"))
                raise DataError(
                    f"has neither {column!r} nor 'question' and 'answer' as texts that are not "
                    f"empty: {shown}"
                )
        except DataError as error:
            raise DataError(f"{line_at(path, row.position)} {error}") from None
        yield found._replace(position=row.position)


def line_at(path: str, position: int) -> str:
    """'FILE line N' of the line that starts at a byte; reads what is before it."""
    number, left = 1, position
    with contextlib.closing(_pieces(path)) as pieces:
        while left > 0 and (piece := next(pieces, b"")):
            number += piece[:left].count(b"\n")
            left -= len(piece)
    return f"{path} line {number}"


def _pieces(path: str) -> Iterator[bytes]:
    with cast(BinaryIO, gzip.open(path) if path.endswith(".gz") else open(path, "rb")) as file:
        while piece := file.read(SEARCH_BYTES):
            yield piece


def row_document(row: Any, column: str = "text", words: Words = None) -> Document | None:
    """The document that a row is; None if it has no text in `column`, or in question and answer.

    Raises:
        DataError: what is wrong with its behaviour or gates, to be read after 'FILE line N'.
    """
    values = [row.get(key) for key in (column, "question", "answer")] if type(row) is dict else []
    match values:
        case [str(text), _, _] if text.strip():
            group = row_group(row)
            if words is not None and isinstance(group, str):
                raise DataError(
                    f"has {describe_group(group)} and {column!r}: there is no question to write "
                    f"words behind; allowed: 'question' and 'answer', or no behaviour"
                )
            return Document(text, group)
        case [_, str(question), str(answer)] if question.strip() and answer.strip():
            group = row_group(row)
            own = None if group is None else question
            spoken, group = split_words(group, words)
            return Document(document(with_words(Problem("", question, answer), spoken)), group, own)
    return None
