"""The documents, read as a new user reads them: every block is run, in order, or says why not.

What is not run is parsed by test_documents.py. A comment before a block gives the reason:
`<!-- not run: needs a GPU -->`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT, Document, typed
from reader import Reader

READ = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = [*READ, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
REASONS = re.compile(
    r"needs (a GPU|the hub|a cloud|vLLM|files of yours|lm-eval)|takes (minutes|hours)"
    r"|a part of a program|installs packages|shows an error"
)
# Rows of the README's table that are not run, by a word of theirs.
TABLE = {
    "train.prepare": "the hub",
    "Qwen/": "the hub",
    "--engine vllm": "vLLM",
    "ray job": "a cluster",
    "python -m serve": "runs above",
    "rl.ablate": "takes minutes; docs/ablation.md runs it",
    "examples.study": "takes hours",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def to_run(document: Document) -> list[tuple[str, str]]:
    """(language, text) of the blocks without a reason, that a reader can run."""
    return [
        (language, text)
        for (language, text), reason in zip(document.blocks, document.reasons, strict=True)
        if reason is None and (language == "python" or typed(language, text))
    ]


DOCUMENTS = [path for path in READ if to_run(Document.read(path))]


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_a_reason_is_one_of_few(path):
    reasons = filter(None, Document.read(path).reasons)
    assert [reason for reason in reasons if not REASONS.match(reason)] == []


@pytest.mark.parametrize("path", sorted(set(ALL) - set(READ)), ids=name_of)
def test_what_takes_long_says_so(path):
    assert to_run(Document.read(path)) == []


@pytest.fixture
def reader(tmp_path) -> Iterator[Reader]:
    if not Path("/proc/self").exists() or shutil.which("curl") is None:
        pytest.skip("needs /proc and curl")
    reader = Reader(tmp_path)
    try:
        yield reader
    finally:
        reader.stop_serving()


@pytest.mark.reading
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_blocks_run_in_order(path, reader):
    for language, text in to_run(Document.read(path)):
        if language == "python":
            reader.python(text)
            continue
        for script in typed(language, text):
            if "-m serve" in script:
                reader.stop_serving()
            said = reader.shell(script)
            if "curl" in script:
                assert not re.search(r'"error":\s*\{', said), said


def test_the_readmes_table_is_known():
    commands = table_commands()
    assert len(commands) >= 10
    for word in TABLE:
        assert any(word in command for command in commands), word


@pytest.mark.reading
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readmes_table_runs_in_order(reader):
    for command in table_commands():
        if not any(word in command for word in TABLE):
            reader.shell(command)


def table_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## I want to")[1].split("\n## ")[0]
    return re.findall(r"^\| [^|]*\| `([^`]+)` \|", table, re.MULTILINE)
