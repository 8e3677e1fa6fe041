"""`ray job submit` to a cluster that is already there."""

import re
import subprocess
from pathlib import Path

import pytest
from ray_head import BIN

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_trains_on_the_running_cluster(ray_head, tmp_path):
    submit = [
        *(str(BIN / "ray"), "job", "submit", "--address", ray_head.jobs, "--working-dir", "."),
        *("--", "python", "-m", "train", "--config", "configs/demo_mhc.yaml"),
        *("--name", "job", "--storage", str(tmp_path), "--steps", "2"),
        *("--data.builtin-count", "400", "--data.validation-documents", "4"),
        *("--model.n-layers", "1", "--model.d-model", "32"),
    ]
    result = subprocess.run(
        submit, cwd=ROOT, env=ray_head.environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout
    assert re.search(r"step 2/2 \| loss", result.stdout)
    assert (tmp_path / "job" / "step-000002" / "model" / "model.safetensors").is_file()
