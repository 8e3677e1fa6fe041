"""Public names keep their paths and signatures.

tests/data/public_names.txt has a line for each: the path, and for what can be called the parameters
with their defaults, without types. docs/architecture.md lists the same names. A line that must
change is a change that users see: it belongs in CHANGELOG.md, too.
"""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.metadata import entry_points
from typing import Any

import pytest
from documents import ROOT

PINNED = (ROOT / "tests" / "data" / "public_names.txt").read_text(encoding="utf-8").splitlines()
ARCHITECTURE = ROOT / "docs" / "architecture.md"
# Ray, RLlib, Serve and vLLM know these as texts.
NAMED_AS_TEXT = (
    "serve.deployment:build",
    "serve.proxy:middlewares",
    "mhc_model.vllm_plugin:register",
    "mhc_model.vllm_plugin.model:MHCGatesForVLLM",
)
# Not in the environment of the other tests.
OPTIONAL = {"vllm"}
LONGEST_DEFAULT = 40


def path_of(line: str) -> str:
    return line.partition("(")[0]


@pytest.mark.parametrize("line", PINNED, ids=path_of)
def test_signature(line):
    path = path_of(line)
    assert path + parameters(path) == line, f"{path}{parameters(path)}\nwas\n{line}"


def test_the_architecture_lists_these_names():
    text = ARCHITECTURE.read_text(encoding="utf-8").split("## Public names")[1].split("\n## ")[0]
    listed = set()
    for module, names in re.findall(r"^\| `([\w.]+)` \| (.*) \|$", text, re.MULTILINE):
        listed |= {f"{module}.{name}" for name in re.findall(r"`(\w+)`", names)}
    paths = set(map(path_of, PINNED))
    assert listed == {path for path in paths if path.rpartition(".")[0] not in paths}


@pytest.mark.parametrize("path", NAMED_AS_TEXT)
def test_what_others_know_as_text(path):
    module, _, name = path.partition(":")
    try:
        assert callable(getattr(importlib.import_module(module), name))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


def test_vllm_finds_the_plugin():
    (point,) = entry_points(group="vllm.general_plugins", name="mhc_gates")
    assert point.value == "mhc_model.vllm_plugin:register"


def find(path: str) -> Any:
    """The object of a dotted path."""
    parts = path.split(".")
    found: Any = importlib.import_module(parts[0])
    for size, name in enumerate(parts[1:], start=2):
        if inspect.ismodule(found) and not hasattr(found, name):
            importlib.import_module(".".join(parts[:size]))
        found = getattr(found, name)
    return found


def parameters(path: str) -> str:
    """`(name, name=default, *, name=default)` as a caller writes them.

    Nothing for a value, an error or a protocol: nobody calls these.
    """
    found = find(path)
    if not callable(found) or getattr(found, "_is_protocol", False):
        return ""
    if inspect.isclass(found) and issubclass(found, BaseException):
        return ""
    signature = inspect.signature(found)
    shown = [
        each.replace(annotation=inspect.Parameter.empty, default=short(each.default))
        for each in signature.parameters.values()
    ]
    if is_method(path):
        del shown[0]  # self
    return str(signature.replace(parameters=shown, return_annotation=inspect.Signature.empty))


def is_method(path: str) -> bool:
    """Whether a path leads to a function that wants an object of the class before it."""
    parent, _, name = path.rpartition(".")
    owner = find(parent)
    return inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, name))


class Shown:
    """A default that is written as this text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def short(default: Any) -> Any:
    """The default, or its type where it is long or has an address."""
    if default is inspect.Parameter.empty:
        return default
    text = repr(default)
    if len(text) > LONGEST_DEFAULT or " at 0x" in text:
        text = f"{type(default).__name__}(...)"
    return Shown(text)
