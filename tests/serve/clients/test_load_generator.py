"""The load generator runs, counts what it did, and stays on this machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.serve", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("MHC_API_KEYS", None)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_last_line_holds_the_figures(live, checkpoint):
    sizes = "--requests 6 --concurrency 3 --pairs 2 --prompt-tokens 8 --max-tokens 5"
    done = run("--url", live, "--checkpoint", str(checkpoint), *sizes.split())
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {"options", "machine", "overhead", "load"}
    load, overhead = report["load"], report["overhead"]
    assert (load["requests"], load["errors"]) == (6, {})
    assert load["tokens_per_s"] * load["seconds"] == pytest.approx(30)
    figures = [value for key, value in load.items() if key.endswith(("p50", "p95"))]
    figures += [overhead["http_ttft_ms"], overhead["engine_ttft_ms"]]
    assert all(math.isfinite(value) and value > 0 for value in figures)
    assert overhead["overhead_ms"] == pytest.approx(
        overhead["http_ttft_ms"] - overhead["engine_ttft_ms"]
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--url http://example.org:8000 --pairs 0", "loopback"),
        ("--url http://127.0.0.1.example.org --pairs 0", "loopback"),
        ("--url http://127.0.0.1:1", "--checkpoint"),
        ("--concurrency 5000", "1 to 1024"),
        ("--requests -1", "0 to 100000"),
        ("--seconds 1e9", "0.1 to 3600"),
    ],
)
def test_it_refuses_other_hosts_and_unbounded_loads(arguments, reason, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.serve import parse_options

    with pytest.raises(SystemExit) as error:
        parse_options(arguments.split())
    assert error.value.code == 2
    assert reason in capsys.readouterr().err
