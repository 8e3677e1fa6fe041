"""The file in a checkpoint that lets transformers load it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mhc_model import ModelConfig
from mhc_model.checkpoint.remote_code import REMOTE_CODE, config_entries
from mhc_model.huggingface import MHCGatesConfig, MHCGatesForCausalLM


def test_entries_name_classes_that_exist() -> None:
    entries = config_entries(ModelConfig())
    namespace: dict[str, object] = {}
    exec(compile(REMOTE_CODE, "modeling_mhc_gates.py", "exec"), namespace)
    for reference in entries["auto_map"].values():
        module, name = reference.split(".")
        assert module == "modeling_mhc_gates"
        assert isinstance(namespace[name], type)
    assert entries["architectures"] == [MHCGatesForCausalLM.__name__]
    assert entries["model_type"] == MHCGatesConfig.model_type


def test_shim_without_the_project_says_what_to_install(tmp_path: Path) -> None:
    shim = tmp_path / "modeling_mhc_gates.py"
    shim.write_text(REMOTE_CODE)
    # -I -S: neither this directory nor the installed packages are on the path.
    result = subprocess.run([sys.executable, "-I", "-S", shim], capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError: This checkpoint needs the project that wrote it" in result.stderr
    assert "pip install" in result.stderr
