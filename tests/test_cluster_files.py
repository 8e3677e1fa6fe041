"""cluster.yaml and its variants are what `ray up` takes, and carry what an installation needs."""

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
FILES = ("cluster.yaml", "deploy/aws.yaml", "deploy/gcp.yaml")


def load(file: str) -> dict:
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


@pytest.fixture(params=FILES)
def cluster(request: pytest.FixtureRequest) -> dict:
    return load(request.param)


def test_it_fits_rays_schema(cluster):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_it_is_valid_once_prepared(cluster):
    """The schema of the raw file misses what preparing finds, and the other way round."""
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["max_workers"] == sum(
        node_type["max_workers"]
        for name, node_type in prepared["available_node_types"].items()
        if name != prepared["head_node_type"] or prepared["provider"]["type"] == "local"
    )


def test_machines_of_yours_are_all_workers():
    cluster = load("cluster.yaml")
    (node_type,) = prepare_config(cluster)["available_node_types"].values()
    assert node_type["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize("file", FILES[1:])
def test_clouds_start_what_the_training_configuration_asks_for(file):
    """One GPU machine holds the 8 workers of configs/mhc_d12.yaml; the head holds none."""
    types = load(file)["available_node_types"]
    workers = load("configs/mhc_d12.yaml")["workers"]
    machine = types["h100"]["resources"]
    assert machine["GPU"] == workers["num_workers"]
    assert machine["CPU"] >= workers["num_workers"] * workers["cpus_per_worker"]
    assert "GPU" not in types["head"]["resources"]


@pytest.mark.parametrize(
    ("file", "identity"),
    [("deploy/aws.yaml", "IamInstanceProfile"), ("deploy/gcp.yaml", "serviceAccounts")],
)
def test_cloud_workers_may_read_the_bucket(file, identity):
    """Ray gives the head an identity of its own where none is named; workers get none."""
    assert identity in load(file)["available_node_types"]["h100"]["node_config"]


@pytest.mark.parametrize("file", FILES[1:])
def test_variants_install_and_start_as_cluster_yaml_does(file):
    first, variant = load(FILES[0]), load(file)
    same = (
        "file_mounts",
        "rsync_exclude",
        "setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    )
    assert {key: variant[key] for key in same} == {key: first[key] for key in same}


def test_nodes_get_every_file_of_an_installation(cluster):
    here = [path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert all((ROOT / path).exists() for path in here)
    assert installation() <= set(here)
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


def test_the_image_has_every_file_of_an_installation():
    instructions = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {
        source for line in instructions if line.startswith("COPY ") for source in line.split()[1:-1]
    }
    assert all((ROOT / path).exists() for path in copied)
    assert installation() <= copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{path}" for path in copied} <= set(ignored)


def installation() -> set[str]:
    """What `make install` reads, and the configurations."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    packages = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {pattern.rstrip("*") for pattern in packages}
    named = {project["readme"], *project["license-files"]}
    return {*folders, *named, "Makefile", "pyproject.toml", "constraints.txt", "configs"}
