"""Files written whole or not at all, their hashes, and their lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    """Writes UTF-8 text under a temporary name and renames it: readers see the old or the new."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """As `replace_text`."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def replace_json(path: Path, value: Any) -> None:
    """As `replace_text`, with a value as indented JSON."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def file_sha256(path: Path) -> str:
    """Of the content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file without their ends. Only "\\n" ends a line: `str.splitlines` also
    splits at U+0085, U+2028 and others, which JSON strings may contain as they are.

    Raises:
        OSError: if the file cannot be read.
        UnicodeDecodeError: if it is not UTF-8, as where a character was cut off.
    """
    return [line.decode("utf-8") for line in split_lines(path.read_bytes())]


def split_lines(content: bytes) -> list[bytes]:
    """Lines of a file's content without their ends; the last one may lack its end."""
    return content.removesuffix(b"\n").split(b"\n") if content else []
