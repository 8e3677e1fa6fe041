"""What the documents name is there: links, paths, modules, commands with their options."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import re
import runpy
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pytest
import tyro
from documents import ROOT, Document, inline_commands, words_of
from pydantic import BaseModel

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
# What has been may have other names.
PRESENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
PACKAGES = ("mhc_model", "evals", "train", "rl", "serve", "benchmarks", "tests", "examples")
FOLDERS = (*PACKAGES, "configs", "docs", "deploy")
# Files that we write, and that are no part of the tree.
WRITTEN = {"modeling_mhc_gates.py"}

DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?::\w+)?")
FILE_NAME = re.compile(r"\.(?:jsonl|gz|json|yaml|py|md|txt|html)\b")
REPOSITORY_PATH = re.compile(rf"(?<![\w./$-])(?:{'|'.join(FOLDERS)})/[\w./*${{}},-]*")
PYTHON_FILE = re.compile(r"(?<![\w./*}-])[\w./]+\.py\b")
# Stands for what the reader has; then only the options are checked.
PLACEHOLDER = re.compile(r"\.\.\.|…|\*|\b[A-Z][A-Z_]+\b|\bN\b")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parametrized(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


@parametrized(DOCUMENTS)
def test_links_lead_somewhere(path):
    wrong = []
    for link in Document.read(path).links:
        if re.match(r"[a-z]+:", link):  # another host
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        if not there.exists():
            wrong.append(f"{link} is not there")
        elif anchor and anchor not in Document.read(there).anchors:
            wrong.append(f"{link}: no such heading")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def tree() -> list[str]:
    """Paths of all files of the packages, and of the top level's."""
    return [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if "__pycache__" not in path.parts
    ]


@parametrized(PRESENT)
def test_paths_are_there(path, tree):
    wrong = []
    for code in Document.read(path).code:
        for found in REPOSITORY_PATH.findall(code):
            pattern = found.rstrip(".,:")
            # A variable, a shell's alternatives, or a word in the place of a name.
            if re.search(r"[${]|\b[A-Z]{2,}$", pattern) and not (ROOT / pattern).exists():
                continue
            if not list(ROOT.glob(pattern.rstrip("/"))):
                wrong.append(f"{found} is not there")
        for found in PYTHON_FILE.findall(code):
            known = any(f"/{one}".endswith(f"/{found}") for one in tree)
            if not known and found not in WRITTEN:
                wrong.append(f"no file is called {found}")
    assert not wrong, "\n".join(wrong)


@parametrized(PRESENT)
def test_pictures_of_the_tree_are_true(path):
    wrong = []
    for _, text in Document.read(path).blocks:
        if text.startswith("mhc_model/"):
            wrong += wrong_in_tree(text)
    assert not wrong, "\n".join(wrong)


def test_the_architecture_shows_every_room():
    trees = [text for _, text in Document.read(ROOT / "docs" / "architecture.md").blocks]
    (tree,) = (text for text in trees if text.startswith("mhc_model/"))
    rooms = {
        f"{folder.parent.name}/{folder.name}"
        for package in PACKAGES[:5]
        for folder in (ROOT / package).iterdir()
        if (folder / "__init__.py").exists()
    }
    assert rooms <= set(folders_of(tree))


def folders_of(tree: str) -> Iterator[str]:
    """Folders of a tree whose packages stand at the left and their rooms two spaces further."""
    package = ""
    for indent, name in re.findall(r"^(|  )(\w+)/", tree, re.MULTILINE):
        package = package if indent else name
        yield f"{package}/{name}" if indent else name


def wrong_in_tree(tree: str) -> list[str]:
    return [f"{path}/ is not there" for path in folders_of(tree) if not (ROOT / path).is_dir()]


@parametrized(PRESENT)
def test_modules_and_their_names_are_there(path):
    names = {name for code in Document.read(path).code for name in DOTTED.findall(code)}
    wrong = list(missing(name.replace(":", ".") for name in sorted(names)))
    assert not wrong, "\n".join(wrong)


@parametrized(PRESENT)
def test_python_is_python_and_imports_what_there_is(path):
    imports = [
        node
        for text in Document.read(path).python
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES
    ]
    wrong = list(missing(f"{node.module}.{name.name}" for node in imports for name in node.names))
    assert not wrong, "\n".join(wrong)


def missing(names: Iterable[str]) -> Iterator[str]:
    """What is wrong with dotted paths of ours; file names are none."""
    for dotted in names:
        if FILE_NAME.search(dotted):
            continue
        module = next(prefixes(dotted), None)
        if module is None:
            yield f"{dotted} cannot be imported"
            continue
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:  # of what is not installed
            if (error.name or "").split(".")[0] in PACKAGES:
                yield f"{dotted}: {error}"
            continue
        for name in dotted.removeprefix(module).split(".")[1:]:
            if not hasattr(found, name):
                yield f"{dotted}: {found!r} has no {name}"
                break
            found = getattr(found, name)


def prefixes(dotted: str) -> Iterator[str]:
    """Modules of which a dotted path may be a part, the longest first."""
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        module = ".".join(parts[:size])
        with contextlib.suppress(ModuleNotFoundError):  # its parent is no package
            if find_spec(module) is not None:
                yield module


@parametrized(PRESENT)
def test_commands_parse(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    document = Document.read(path)
    whole = [words for script in document.scripts for words in words_of(script)]
    wrong = [complaint(words) for words in whole]
    wrong += [complaint(words, partial=True) for words in inline_commands(document)]
    assert not any(wrong), "\n".join(filter(None, wrong))


def complaint(words: list[str], partial: bool = False) -> str | None:
    """What is wrong with a command.

    Args:
        words: of the command, its name first.
        partial: it need not be complete.
    """
    wrong = None
    if words[:3] == ["ray", "job", "submit"] and "--" in words:
        return complaint(words[words.index("--") + 1 :], partial)
    if words[0] == "make":
        wrong = wrong_for_make(words[1:])
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in PACKAGES:
        module, arguments = words[2], words[3:]
        if not is_command(module):
            return f"{' '.join(words)}: no such command"
        wrong = None if partial else said_of(module, arguments)
        if partial or (wrong and depends_on_reader(arguments, wrong)):
            wrong = unknown_options(module, arguments)
    elif words[0] == "python" and words[1].endswith(".py") and not (ROOT / words[1]).exists():
        wrong = "no such file"
    return wrong and f"{' '.join(words)}: {wrong}"


def is_command(module: str) -> bool:
    spec = find_spec(module) if module in prefixes(module) else None
    if spec is not None and spec.submodule_search_locations is not None:
        spec = find_spec(f"{module}.__main__")
    return spec is not None


def depends_on_reader(arguments: list[str], said: str) -> bool:
    """Whether a command has placeholders, or was refused for a file that only the reader has."""
    paths = (word for word in arguments if re.search(r"[./]", word) and f"'{word}'" in said)
    return any(map(PLACEHOLDER.search, arguments)) or any(not Path(one).exists() for one in paths)


def wrong_for_make(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, equals, _ = word.partition("=")
        definition = rf"^{re.escape(name)} \?=" if equals else rf"^{re.escape(name)}:"
        if not re.search(definition, makefile, re.MULTILINE):
            return f"the Makefile has no {name}"
    return None


def unknown_options(module: str, arguments: list[str]) -> str | None:
    allowed = options_of(module, arguments)
    given = (word.split("=")[0] for word in arguments if re.match(r"--[a-z]", word))
    unknown = [flag for flag in given if flag.replace("_", "-") not in allowed]
    return f"unknown: {', '.join(unknown)}" if unknown else None


class Parsed(BaseException):
    """The command has read its command line."""


class Known(BaseException):
    """Its parser is known: the options are the argument."""


@contextlib.contextmanager
def parsers(read: bool) -> Iterator[None]:
    """Lets commands come as far as their parser: through it if `read`, or up to it."""
    real_cli, real_parse = tyro.cli, argparse.ArgumentParser.parse_args

    def cli(settings: type[BaseModel], **arguments: Any) -> None:
        if not read:
            raise Known(set(flags(settings)))
        real_cli(settings, **arguments)
        raise Parsed

    def parse_args(self: argparse.ArgumentParser, *arguments: Any) -> None:
        if not read:
            raise Known(set(self._option_string_actions))
        real_parse(self, *arguments)
        raise Parsed

    with (
        patch.object(tyro, "cli", cli),
        patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        warnings.catch_warnings(),
    ):
        # A command is run as `__main__` beside the module of its name.
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        yield


def flags(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Options of all fields, those of nested settings included."""
    yield from ("--config", "--dry-run", "--help")
    for name, info in settings.model_fields.items():
        yield f"--{prefix}{name}".replace("_", "-")
        yield f"--{prefix}no-{name}".replace("_", "-")
        for nested in (info.annotation, *get_args(info.annotation)):
            if isinstance(nested, type) and issubclass(nested, BaseModel):
                yield from flags(nested, f"{prefix}{name}.")


def said_of(module: str, arguments: list[str]) -> str | None:
    """What `python -m module arguments` says against its command line; None if nothing."""
    said = io.StringIO()
    with (
        parsers(read=True),
        patch.object(sys, "argv", [module, *arguments]),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
    ):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Parsed:
            return None
        except SystemExit as ended:
            return said.getvalue() if ended.code else None
    return f"{module} read no command line"


def options_of(module: str, arguments: list[str]) -> set[str]:
    """The options of a command, or of its subcommand."""
    subcommand = [word for word in arguments[:1] if re.fullmatch(r"[a-z][a-z-]*", word)]
    with parsers(read=False), patch.object(sys, "argv", [module, *subcommand]):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Known as known:
            options: set[str] = known.args[0]
            return options
        except SystemExit:  # a list of subcommands
            return {"--help"}
    raise AssertionError(f"{module} read no command line")
