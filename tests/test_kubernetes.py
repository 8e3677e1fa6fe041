"""deploy/rayjob.yaml and deploy/rayservice.yaml fit KubeRay's schema, Serve's and ours.

tests/data/kuberay-1.6.2.json.gz has the schemas of RayJob and RayService (ray.io/v1) from KubeRay's
custom resource definitions (github.com/ray-project/kuberay, v1.6.2, Apache-2.0), without the
descriptions and the status.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from mhc_model.settings import parse_command_line, validate_settings
from serve.settings import ServeSettings
from train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "tests/data/kuberay-1.6.2.json.gz"
MANIFESTS = {"RayJob": "deploy/rayjob.yaml", "RayService": "deploy/rayservice.yaml"}


def load(kind: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / MANIFESTS[kind]).read_text(encoding="utf-8"))


def strict(schema: Any) -> Any:
    """Kubernetes drops unknown fields in silence; here they are errors."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        key: {name: strict(part) for name, part in value.items()}
        if key == "properties"
        else strict(value)
        for key, value in schema.items()
    }
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if "properties" in schema and not open_ended:
        result["additionalProperties"] = False
    return result


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    raw = json.loads(gzip.decompress(SCHEMAS.read_bytes()))
    # The cluster's own fields: the definition leaves metadata to Kubernetes.
    return {kind: strict(schema) | {"additionalProperties": True} for kind, schema in raw.items()}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_the_manifest_fits_kuberays_schema(kind, schemas):
    manifest = load(kind)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    jsonschema.Draft202012Validator(schemas[kind]).validate(manifest)


def test_a_misspelt_field_does_not_fit(schemas):
    manifest = load("RayJob")
    container = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    container["containers"][0]["resource"] = {}
    with pytest.raises(jsonschema.ValidationError, match="resource"):
        jsonschema.Draft202012Validator(schemas["RayJob"]).validate(manifest)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_the_cluster_runs_the_ray_that_the_image_has(kind):
    pinned = re.search(r"(?m)^ray==(\S+)", (ROOT / "constraints.txt").read_text()).group(1)
    assert cluster_of(load(kind))["rayVersion"] == pinned


@pytest.mark.parametrize("kind", MANIFESTS)
def test_rays_ports_need_a_token_and_all_pods_have_one_image(kind):
    cluster = cluster_of(load(kind))
    assert cluster["authOptions"] == {"mode": "token"}
    images = {container["image"] for container in containers(cluster)}
    assert len(images) == 1
    for container in containers(cluster):
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_jobs_command_is_one_that_train_takes():
    words = shlex.split(load("RayJob")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "train"]
    arguments = [word.replace("/app/", f"{ROOT}/") for word in words[3:]]
    config = parse_command_line(TrainConfig, "python -m train", "", arguments)
    group = cluster_of(load("RayJob"))["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    machines = -(-config.workers.num_workers // int(limits["nvidia.com/gpu"]))
    assert machines <= group["maxReplicas"]
    assert config.workers.cpus_per_worker * int(limits["nvidia.com/gpu"]) <= int(limits["cpu"])
    # Pods share no disk, and the image holds no data.
    assert config.storage.startswith("s3://")
    assert config.data.shards.startswith("s3://")
    assert not config.data.files


def test_every_pod_of_the_job_may_read_the_bucket():
    """The head too: the command itself runs there."""
    cluster = cluster_of(load("RayJob"))
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    accounts = [group["template"]["spec"]["serviceAccountName"] for group in groups]
    assert len(set(accounts)) == 1


def test_the_services_configuration_is_serve_app_yaml_for_that_place():
    served = yaml.safe_load(load("RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(served)
    validate_settings(ServeSettings, served["applications"][0]["args"], "args")
    local = yaml.safe_load((ROOT / "configs/serve_app.yaml").read_text(encoding="utf-8"))
    expected = copy.deepcopy(local)
    expected["http_options"]["host"] = "0.0.0.0"
    expected["controller_options"]["runtime_env"]["env_vars"]["MHC_RAY_ROUTES"] = "1"
    expected["applications"][0]["args"] |= {
        "checkpoint": "/models/mhc",
        "model_name": "mhc",
        "cpus_per_replica": 4,
        "gpus_per_replica": 1,
    }
    del expected["applications"][0]["args"]["policy"]
    assert served == expected


def test_the_service_has_room_for_all_of_its_replicas():
    arguments = yaml.safe_load(load("RayService")["spec"]["serveConfigV2"])["applications"][0]
    group = cluster_of(load("RayService"))["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    per_pod = int(limits["nvidia.com/gpu"]) // arguments["args"]["gpus_per_replica"]
    assert group["maxReplicas"] * per_pod >= arguments["args"]["max_replicas"]
    assert int(limits["cpu"]) >= per_pod * arguments["args"]["cpus_per_replica"]


def test_every_pod_of_the_service_has_the_keys():
    """The proxies, on all nodes, and the replicas read them from the environment."""
    for container in containers(cluster_of(load("RayService"))):
        assert container["envFrom"] == [{"secretRef": {"name": "mhc-gates-keys"}}]


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def containers(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield from group["template"]["spec"]["containers"]
