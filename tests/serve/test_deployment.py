"""The Ray Serve application that a configuration file names; test_replicas.py runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from mhc_model.settings import validate_settings
from serve.auth import VARIABLE
from serve.proxy import proxy_environment
from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call
from ray.serve.schema import ServeDeploySchema
from ray._common.utils import import_attr
schema = ServeDeploySchema.model_validate(json.loads(sys.argv[1]))
deployments = []
for application in schema.applications:
    for more in ({}, {"max_replicas": 5, "target_ongoing_requests": 7, "max_ongoing_requests": 9}):
        app = call(import_attr(application.import_path), application.args | more)
        deployment = app._bound_deployment
        scaling = deployment._deployment_config.autoscaling_config
        deployments.append({
            "replicas": deployment.num_replicas,
            "ongoing": deployment.max_ongoing_requests,
            "drain_s": deployment._deployment_config.graceful_shutdown_timeout_s,
            "actor": deployment.ray_actor_options,
            "health": [deployment._deployment_config.health_check_period_s,
                       deployment._deployment_config.health_check_timeout_s],
            "scaling": scaling and [scaling.min_replicas, scaling.max_replicas,
                                    scaling.target_ongoing_requests],
        })
environment = schema.controller_options.runtime_env["env_vars"]
print(json.dumps([environment, schema.http_options.host, deployments]))
"""


def test_the_shipped_application_file_is_what_serve_deploy_takes(checkpoint):
    """Serve's own schema and builder read it; the proxies get the environment that it needs."""
    content = yaml.safe_load((ROOT / "configs" / "serve_app.yaml").read_text())
    (application,) = content["applications"]
    settings = validate_settings(ServeSettings, application["args"], "serve_app.yaml")
    assert settings.max_replicas is not None
    for field in ("max_replicas", "target_ongoing_requests"):
        application["args"].pop(field)
    application["args"] |= {"checkpoint": str(checkpoint), "replicas": 3, "gpus_per_replica": 0.5}
    # In a process of its own: Ray reads the environment for good when it is imported.
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(content)]
    environment = os.environ | {VARIABLE: "key-number-1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    proxies, host, (fixed, scaled) = json.loads(done.stdout)
    assert proxies == proxy_environment(settings.request_timeout_s, settings.access_log)
    assert host == "127.0.0.1"
    assert (fixed["replicas"], fixed["scaling"]) == (3, None)
    assert fixed["ongoing"] > settings.max_batch + settings.max_queue
    assert fixed["drain_s"] == settings.drain_s
    assert fixed["health"] == [settings.health_check_s, settings.health_check_timeout_s]
    assert settings.health_check_timeout_s < 10  # Serve's own is 30, three times over
    assert fixed["actor"] == {"num_cpus": 1, "num_gpus": 0.5}
    assert scaled["scaling"] == [3, 5, 7]
    assert scaled["ongoing"] == 9
