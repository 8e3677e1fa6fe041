"""What starts quickly stays so: a command that shows its help has loaded none of the heavy modules.

Each takes a tenth of a second or more, torch 1.5 s. The number of them is what is asserted, not the
time, which depends on the machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mhc_model.__main__ import COMMANDS

HEAVY = {
    "datasets",
    "einops",
    "fastapi",
    "gymnasium",
    "lm_eval",
    "matplotlib",
    "pandas",
    "pyarrow",
    "ray",
    "safetensors",
    "scipy",
    "tensorboard",
    "tiktoken",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
}
ENTRIES = [
    "mhc_model",
    *(f"mhc_model {command}" for command in COMMANDS),
    "train",
    "train.prepare",
    "rl",
    "rl.ablate",
    "rl.steerable",
    "evals",
    "evals.compare",
    "evals.report",
    "serve",
    "examples.study",
]
# As `python -m ENTRY --help`, and at the end a line with the names of all modules.
HELP = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print()
    print(*{name.partition(".")[0] for name in sys.modules})
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_loads_nothing_heavy(entry):
    shown = run(HELP, *entry.split(), "--help")
    assert shown.returncode == 0, shown.stderr
    *text, modules = shown.stdout.splitlines()
    assert "usage: " in "\n".join(text)
    assert {"pydantic", "tyro"} <= set(modules.split()), "the settings are read by these"
    assert HEAVY & set(modules.split()) == set()


IMPORT = """
import sys
def heavy():
    return {name.partition(".")[0] for name in sys.modules} & set(sys.argv[1:])
import mhc_model
assert heavy() == set(), heavy()
mhc_model.ModelConfig, mhc_model.MHCConfig, mhc_model.ConfigError
assert heavy() == set(), heavy()
for name in mhc_model.__all__:
    getattr(mhc_model, name)
print(*heavy())
"""


def test_the_package_loads_torch_when_a_name_needs_it_and_never_what_others_need():
    done = run(IMPORT, *HEAVY)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert loaded <= {"torch", "numpy", "einops", "safetensors", "tiktoken", "tokenizers"}
