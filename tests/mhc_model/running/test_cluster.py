"""Ray that does not start, in one line; and the real commands, which leave nothing behind then."""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mhc_model import save_checkpoint
from mhc_model.errors import ConfigError
from mhc_model.running import ray_cluster
from mhc_model.running.cluster import NO_NEWS
from mhc_model.settings import RaySettings
from mhc_model.tokenizer import Tokenizer

ROOT = Path(__file__).parents[3]
LONG = "/tmp/" + "x" * 60


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "an URL such as a dashboard or a client has"),
        ("https://127.0.0.1:8265", "an URL"),
        ("ray://127.0.0.1:10001", "an URL"),
        ("127.0.0.1", "host:port of the head node"),
        ("127.0.0.1:", "host:port"),
        (":6379", "host:port"),
        ("127.0.0.1:70000", "host:port"),
        ("127.0.0.1:6379/", "host:port"),
    ],
)
@pytest.mark.parametrize("source", ["RAY_ADDRESS", "ray.address"])
def test_an_address_that_is_none(address, message, source, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = RaySettings(address=address if source == "ray.address" else None)
    if source == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"{source} is '{address}'.*{message}"):
        settings.init_arguments()


@pytest.mark.parametrize(
    ("directory", "message"),
    [(LONG, "65 bytes long, and at most 43"), ("relative", "not absolute")],
)
def test_a_directory_that_cannot_be_the_clusters(directory, message, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=rf"ray.temp_dir is .*{message}.*--ray.temp-dir"):
        RaySettings(temp_dir=directory).init_arguments()
    monkeypatch.setenv("RAY_TMPDIR", directory)
    with pytest.raises(ConfigError, match=f"RAY_TMPDIR is .*{message}"):
        RaySettings().init_arguments()


class FakeRay(SimpleNamespace):
    """A module `ray` whose cluster does not start, for reasons that a test cannot bring about."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(error=error, calls=[], options={})

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: object) -> None:
        self.options = options
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        self.calls.append("shutdown")


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup. This could happen because \n ..."),
        RuntimeError("Failed to start GCS. Last 3 lines of error files: x\ny\nTraceback: z"),
        OSError("AF_UNIX path length cannot exceed 107 bytes: /x"),
        ValueError("\x1b[31mred\x1b[0m"),
        ConnectionError(),
    ],
)
@pytest.mark.parametrize("address", ["local", "auto"])
def test_whatever_ray_says_becomes_one_line(error, address, tmp_path):
    ray = FakeRay(error)
    with (
        pytest.raises(ConfigError) as raised,
        ray_cluster(ray, {"address": address, "_temp_dir": str(tmp_path)}),
    ):
        raise AssertionError("it has not started")
    message = str(raised.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert "Traceback" not in message
    reason = re.sub(r"\x1b\[\d+m", "", str(error))[:16] or "ConnectionError"
    assert reason in message
    assert ray.calls == ["shutdown"]


def test_the_directory_of_a_private_cluster_is_the_users_alone(tmp_path, capsys):
    made = tmp_path / "a" / "b"
    with ray_cluster(FakeRay(None), {"address": "local", "_temp_dir": str(made)}):
        assert made.stat().st_mode & 0o777 == 0o700
    assert "warning" not in capsys.readouterr().err
    made.chmod(0o755)
    with ray_cluster(FakeRay(None), {"address": "local", "_temp_dir": str(made)}):
        assert f"{made} is open to other users (mode 755)" in capsys.readouterr().err


def test_noise_is_left_out_and_news_is_not(caplog):
    names = list(NO_NEWS)
    with ray_cluster(FakeRay(None), {"address": "auto"}):
        for name, noise in NO_NEWS.items():
            caplog.set_level(logging.WARNING, name)  # whatever other tests set
            logging.getLogger(name).warning("%s, as always", noise)
            logging.getLogger(name).warning("a worker died")
            logging.getLogger(name).error(noise)
    said = [(record.name, record.getMessage()) for record in caplog.records]
    assert said == [pair for n in names for pair in ((n, "a worker died"), (n, NO_NEWS[n]))]


def test_nothing_answers_at_the_address():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ray = FakeRay(None)
        with (
            pytest.raises(ConfigError, match=f"the Ray cluster at {address} does not answer"),
            ray_cluster(ray, {"address": address}),
        ):
            pass
    assert ray.options == {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_model) -> Path:
    tokenizer = Tokenizer.train(["Question: Tom has 7 apples.\nAnswer: 7"] * 8, 280)
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(directory, tiny_model(vocab_size=280, max_seq_len=256), tokenizer)
    return directory


def commands(checkpoint: Path, runs: Path, source: Path) -> dict[str, list[str]]:
    """Every command that starts Ray, small."""
    model = f"--checkpoint {checkpoint}"
    given = {
        "train": f"--config configs/demo_mhc.yaml --storage {runs} --data.builtin-count 64",
        "train.prepare": f"--source {source} --out {runs}/s --tokenizer train --vocab-size 300",
        "rl": f"--config configs/demo_rl.yaml {model} --data builtin:1 --problems 8 --sweep 0 "
        f"--observation-layer 1 --storage {runs}",
        "rl.ablate": f"--config configs/ablate_demo.yaml {model} --data builtin:1 --problems 8 "
        f"--storage {runs}",
        "evals": f"{model} --tasks gsm8k --data builtin:1 --limit 4 --replicas 2 --out {runs}/e",
        "serve": f"{model} --port 0",
    }
    return {name: shlex.split(arguments) for name, arguments in given.items()}


NAMES = ["train", "train.prepare", "rl", "rl.ablate", "evals", "serve"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reason", ["url", "silent", "long"])
def test_a_command_without_ray_ends_in_one_line_and_leaves_nothing(
    name, reason, checkpoint, tmp_path
):
    source = tmp_path / "source.txt"
    source.write_text("the cat sat on the mat\n\n" * 2000)
    arguments = commands(checkpoint, tmp_path / "runs", source)[name]
    if name == "serve":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            arguments[-1] = str(probe.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "t")}
    (tmp_path / "t").mkdir()
    if reason == "long":
        arguments += ["--ray.temp-dir", LONG]
    else:
        address = "http://127.0.0.1:8265" if reason == "url" else "127.0.0.1:1"
        environment["RAY_ADDRESS"] = address
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert not (tmp_path / "runs").exists()
    assert list((tmp_path / "t").glob("mhc-*")) == []
    assert not Path(LONG).exists()
