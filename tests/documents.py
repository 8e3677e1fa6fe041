"""What a Markdown document names: links, paths, modules and commands, for test_documents.py.

Shell blocks are run by bash itself, so that its own rules say what a command's words are: quotes,
variables, loops, lines that go on. But there is no program for it to find: `python`, `make` and
`ray` are functions that write their words down, everything else is passed over.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FENCE = re.compile(
    r"(?:^<!-- not run: ([^\n]*?) -->\n)?^[ ]*```(\w*)\n(.*?)^[ ]*```$", re.MULTILINE | re.DOTALL
)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)(?:\s\"[^\"]*\")?\)|<img src=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
# An unlabelled block is a shell's if it begins like one; otherwise only its lines after `$ ` are.
COMMAND_LINE = re.compile(r"\s*(?:[A-Z_]+=\S+ )*(?:python -m|make|ray) ")
REDIRECTION = re.compile(r"\s\d?>{1,2}\s*[\w./-]+")

BASH = shutil.which("bash") or "/bin/bash"
RECORD = r"""
record() { printf '%s\0' "$@" $'\1'; }
python() { record python "$@"; }
make() { record make "$@"; }
ray() { record ray "$@"; }
command_not_found_handle() { :; }
"""


@dataclass(frozen=True)
class Document:
    """A document, taken apart.

    Attributes:
        path: of the file.
        prose: its text without the fenced blocks.
        spans: its inline code, each on one line.
        blocks: its fenced blocks, as (language, text).
        reasons: for each block why no test runs it, from a comment before it; None if one does.
    """

    path: Path
    prose: str
    spans: list[str] = field(repr=False)
    blocks: list[tuple[str, str]] = field(repr=False)
    reasons: list[str | None] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Document:
        text = path.read_text(encoding="utf-8")
        found = list(FENCE.finditer(text))
        blocks = [(match[2], match[3]) for match in found]
        reasons = [match[1] for match in found]
        prose = FENCE.sub("", text)
        spans = [" ".join(match.split()) for match in SPAN.findall(prose)]
        return cls(path, prose, spans, blocks, reasons)

    @property
    def links(self) -> list[str]:
        """Targets of links and pictures."""
        return [markdown or html for markdown, html in LINK.findall(self.prose)]

    @property
    def anchors(self) -> set[str]:
        """What `#...` may be, as GitHub makes it of the headings."""
        found: dict[str, int] = {}
        names = set()
        for heading in HEADING.findall(self.prose):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
            slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
            count = found.get(slug, 0)
            found[slug] = count + 1
            names.add(slug if count == 0 else f"{slug}-{count}")
        return names

    @property
    def code(self) -> list[str]:
        """Inline code and all blocks but Python's."""
        return [*self.spans, *(text for language, text in self.blocks if language != "python")]

    @property
    def python(self) -> list[str]:
        return [text for language, text in self.blocks if language == "python"]

    @property
    def scripts(self) -> list[str]:
        """What a reader would type into a shell."""
        found = []
        for language, text in self.blocks:
            found += typed(language, text)
        return found


def typed(language: str, text: str) -> list[str]:
    """What a reader would type into a shell of one block."""
    if language in ("sh", "bash") or (language == "" and COMMAND_LINE.match(text)):
        return [text]
    if language == "":
        return re.findall(r"^\$ (.*(?:\\\n.*)*)$", text, re.MULTILINE)
    return []


def words_of(script: str) -> list[list[str]]:
    """The words of every `python`, `make` and `ray` command of a script.

    A restricted shell without a search path: it starts no program and writes no file.
    """
    done = subprocess.run(
        [BASH, "--restricted", "--noprofile", "--norc", "-c", RECORD + without_files(script)],
        env={"PATH": "/nonexistent"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    commands = [part.split("\0")[:-1] for part in done.stdout.split("\1\0")[:-1]]
    written = re.findall(r"\bpython -m ([\w.]+)", re.sub(r"(?m)^\s*#.*$|\s#\s.*$", "", script))
    seen = {word for words in commands for word in words}
    missed = set(written) - seen
    if missed:
        raise AssertionError(f"bash does not reach {sorted(missed)} in\n{script}\n{done.stderr}")
    return commands


def without_files(script: str) -> str:
    """The script without redirections, which the shell refuses."""
    return REDIRECTION.sub("", script)


def inline_commands(document: Document) -> list[list[str]]:
    """Commands among the inline code, which may be parts of ones."""
    return [
        shlex.split(span.replace("…", "..."))
        for span in document.spans
        if re.match(r"(python -m|make|ray job submit) \w", span)
    ]
