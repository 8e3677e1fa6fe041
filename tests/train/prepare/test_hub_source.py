"""A data set of the hub, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mhc_model.settings import dump_settings
from train.data import ShardedTokens
from train.prepare import PrepareConfig
from train.prepare.config import FINEWEB_EDU

ROOT = Path(__file__).parents[3]
FIRST, SECOND = "1" * 40, "2" * 40
TEXTS = [f"Page {i}: größer, Ж, 漢字, {i * i} words. " * 20 for i in range(80)]
README = """---
configs:
- config_name: sample-10BT
  data_files:
  - split: train
    path: data/*.parquet
---
"""
# Stops in the middle, as a kill would, if it is told to.
SCRIPT = """
import sys
from mhc_model.settings import load_settings
from train.prepare.config import PrepareConfig
from train.prepare.run import one_after_another, prepare
def execute(job, parts):
    for done, result in enumerate(one_after_another(job, parts)):
        if done == int(sys.argv[2]):
            raise SystemExit(3)
        yield result
prepare(load_settings(PrepareConfig, sys.argv[1]), execute)
"""


class Hub(ThreadingHTTPServer):
    """One data set, whatever commit of it is asked for; `commit` is the newest."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory, self.commit = directory, FIRST
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        api = f"/api/datasets/{FINEWEB_EDU}"
        file = re.fullmatch(rf"/datasets/{FINEWEB_EDU}/resolve/([^/]+)/(.+)", path)
        tree = re.fullmatch(rf"{api}/tree/[^/]+/?(.*)", path)
        if file is not None:
            self._send_file(self.server.directory / file[2])
        elif tree is not None:
            entries = sorted((self.server.directory / tree[1]).iterdir())
            self._send_json([self._entry(entry) for entry in entries])
        elif re.fullmatch(rf"{api}(/revision/[^/]+)?", path):
            self._send_json({"id": FINEWEB_EDU, "sha": self.server.commit, "siblings": []})
        else:
            self._send(404, headers={"X-Error-Code": "RepoNotFound"})

    def _entry(self, path: Path) -> dict[str, Any]:
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        name = str(path.relative_to(self.server.directory))
        return {"type": kind, "path": name, "size": size, "oid": "a" * 40}

    def _send_file(self, path: Path) -> None:
        headers = {"X-Repo-Commit": self.server.commit, "ETag": '"b"', "Accept-Ranges": "bytes"}
        if not path.exists():
            self._send(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content, headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text(README)
    for number, texts in enumerate((TEXTS[:40], TEXTS[40:])):
        table = pa.table({"text": texts, "score": [0.5] * len(texts)})
        name = f"train-{number:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(table, tmp_path / "hub" / "data" / name, row_group_size=10)
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_default_data_set_and_a_restart_after_it_has_changed(hub, tmp_path):
    config = PrepareConfig(
        out=str(tmp_path / "out"),
        tokenizer="train",
        vocab_size=300,
        validation_share=0.2,
        part_bytes=15_000,
    )
    assert config.source == (FINEWEB_EDU,)
    dump_settings(config, tmp_path / "config.yaml")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",  # other tests set it; the hub here is this machine
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.yaml")]
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "timeout": 240, "text": True}
    first = subprocess.run([*command, "2"], capture_output=True, **options)
    assert first.returncode == 3, first.stderr

    hub.commit = SECOND
    hub.asked.clear()
    second = subprocess.run([*command, "99"], capture_output=True, **options)
    assert second.returncode == 0, second.stderr
    # Eight row groups of 6,700 characters, two a part.
    assert "4 parts of about 15,000 bytes, 3 of them finished" in second.stdout
    shards = ShardedTokens(config.out)
    assert shards.manifest.settings["revision"] == FIRST
    assert any(FIRST in path and path.endswith(".parquet") for path in hub.asked)
    assert not any(SECOND in path or "/main/" in path for path in hub.asked)
    tokenizer = shards.tokenizer()
    found = list(shards.validation_texts(tokenizer, 1000))
    for entry in shards.manifest.train:
        tokens = np.fromfile(Path(config.out, entry.file), np.uint16)
        parts = np.split(tokens, np.flatnonzero(tokens == tokenizer.bos_id))[1:]
        found += [tokenizer.decode(part.tolist()) for part in parts]
    assert sorted(found) == sorted(TEXTS)
