"""The size of folders and files. The order of the rooms is import-linter's (pyproject.toml)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mhc_model", "evals", "train", "rl", "serve", "examples")
MOST_FILES, MOST_LINES = 14, 400
# Tables of data, and kernels that Triton wants in one file.
LONG = {"evals/problems/stories.py", "mhc_model/streams/kernels/triton_kernels.py"}


def rooms() -> list[Path]:
    """Every folder with Python files of the packages and of examples."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return sorted({path.parent for path in files})


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("room", rooms(), ids=named)
def test_a_room_is_small_and_says_what_it_is_for(room):
    files = sorted(room.glob("*.py"))
    assert 2 <= len(files) <= MOST_FILES, f"{named(room)} has {len(files)} Python files"
    text = (room / "__init__.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert len(docstring.splitlines()) >= 3, f"{named(room)}/__init__.py does not introduce itself"
    assert "import" in docstring, f"{named(room)}/__init__.py does not say what it may import"
    for entry in sorted(path for path in room.iterdir() if path.name != "__pycache__"):
        name = entry.stem if entry.suffix == ".py" else entry.name
        if entry.suffix == ".py" or (entry / "__init__.py").exists():
            assert name.startswith("__") or name in docstring, f"{named(entry)} is not introduced"


@pytest.mark.parametrize("room", rooms(), ids=named)
def test_files_are_short(room):
    for path in room.glob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES or named(path) in LONG, f"{named(path)} has {lines} lines"


def test_tests_are_short_too():
    for path in (ROOT / "tests").rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES + 100, f"{named(path)} has {lines} lines"


@pytest.mark.parametrize("room", rooms(), ids=named)
def test_a_room_hands_on_what_it_says(room):
    """`__all__` of the room, or of its stub where names are loaded lazily, is true and sorted."""
    stub = room / "__init__.pyi"
    path = stub if stub.exists() else room / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exported = [
        [element.value for element in node.value.elts]
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"
    ]
    assert exported, f"{named(path)} has no __all__"
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    defined = {
        getattr(node, "name", None)
        or getattr(getattr(node, "targets", [None])[0], "id", None)
        or getattr(getattr(node, "target", None), "id", None)
        for node in tree.body
    }
    inside = {entry.stem for entry in room.iterdir()}
    missing = set(exported[0]) - imported - defined - inside
    assert not missing, f"{named(path)} exports what it does not have: {sorted(missing)}"
