"""cluster.yaml is what `ray up` takes, and carries what an installation needs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def test_it_fits_rays_schema(cluster):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_it_is_valid_once_prepared(cluster):
    """The schema of the raw file misses what preparing finds, and the other way round."""
    prepared = prepare_config(cluster)
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["max_workers"] == len(cluster["provider"]["worker_ips"])


def test_nodes_get_every_file_of_an_installation(cluster):
    here = [path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert all((ROOT / path).exists() for path in here)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {package.split(".")[0] for package in packages["packages"]}
    needed = {*folders, "Makefile", "README.md", "pyproject.toml", "constraints.txt"}
    assert needed <= set(here)
    assert any("make install" in command for command in cluster["setup_commands"])


def test_every_node_starts_with_explicit_authentication(cluster):
    starts = [
        command
        for name in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[name]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "~/.ray/auth_token" in cluster["file_mounts"]
