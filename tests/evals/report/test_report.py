"""The report: numbers of the runs' files, pictures inside, and a browser that shows them."""

from __future__ import annotations

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
import yaml

from evals.__main__ import main
from evals.report.__main__ import main as report_main
from evals.report.runs import LEARNED_GATES, find_runs
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy


def write_training(directory, mhc):
    directory.mkdir()
    model = {"n_layers": 2, "d_model": 32, "mhc": {"n_streams": 4} if mhc else None}
    config = {"seed": 0, "steps": 60, "total_batch_tokens": 128, "model": model}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"step": step, "loss": 6.0 / step} for step in range(1, 61)]
    rows[29]["val_bpb"], rows[59]["val_bpb"] = 4.0, 3.1234 if mhc else 3.4321
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tuning(directory):
    directory.mkdir()
    config = {"action_space": "per_sublayer", "reward": "strict", "data": "builtin:1"}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"iteration": 1, "reward": 0.25}, {"iteration": 2, "reward": 0.75}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    random = np.random.default_rng(0)
    rollouts = [
        {"gates": random.random(4).tolist(), "reward": float(random.random() < 0.5)}
        for _ in range(200)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rollouts)
    (directory / "rollouts.jsonl").write_text(lines)
    entry = {"accuracy": 0.5, "wilson_95": [0.4, 0.6], "n": 64}
    summary = {name: entry for name in ("learned", "g=0", "g=1")}
    summary["best gate for each problem"] = {"accuracy": 0.625, "n": 64}
    (directory / "sweep.json").write_text(json.dumps({"summary": summary}))


@pytest.fixture(scope="module")
def runs(checkpoints, tmp_path_factory):
    """A directory with all that a demo leaves: two trainings, RL, three evaluations."""
    root = tmp_path_factory.mktemp("runs")
    write_training(root / "baseline", mhc=False)
    write_training(root / "mhc", mhc=True)
    write_tuning(root / "rl")
    torch.manual_seed(0)
    fields = {"action_space": "per_sublayer", "n_layers": 2, "observation_dim": 32}
    policy = GatePolicy(PolicyConfig(**fields, checkpoint_hash=checkpoints[1]["mhc"]))
    torch.nn.init.normal_(policy.head.weight)
    policy.save(root / "policy")
    common = ["--limit", "8", "--max-tokens", "8", "--device", "cpu", "--tasks", "gsm8k,bpb"]
    for name, checkpoint, more in (
        ("evals-baseline", "plain", []),
        ("evals-mhc", "mhc", ["--tasks", "gsm8k,bpb,latency,sinkhorn", "--latency.repeats", "1"]),
        ("evals-rl", "mhc", ["--gates", f"policy:{root / 'policy'}"]),
    ):
        line = ["--checkpoint", str(checkpoints[0] / checkpoint), "--out", str(root / name)]
        extra = ["--latency.batches", "1", "--sinkhorn-iterations", "2"]
        assert main([*line, *common, *more, *extra]) == 0
    return root


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert report_main([str(runs), "--out", str(out), "--device", "cpu"]) == 0
    return out


def test_numbers_are_those_of_the_runs(runs, report):
    text = (report / "report.md").read_text()
    for name in ("evals-baseline", "evals-mhc", "evals-rl"):
        tasks = json.loads((runs / name / "results.json").read_text())["tasks"]
        assert f"{tasks['bpb']['bits_per_byte']:.4f}" in text
        assert f"{100 * tasks['gsm8k']['strict']['accuracy']:.1f} %" in text
    row = next(line for line in text.splitlines() if line.startswith("| validation bits"))
    assert re.findall(r"\d\.\d{4}", row) == ["3.4321", "3.1234"]
    assert "7,680 tokens" in text  # 60 steps of 128
    assert "mean reward 0.250 in the first and 0.750 in the last" in text
    assert "solves 62.5 %, the learned gates 50.0 %" in text
    assert "| HellaSwag, acc_norm" in text
    assert text.count("not measured") >= 9
    assert "p, Holm" in text


def test_commands_are_those_that_made_the_runs(runs, report):
    text = (report / "report.md").read_text()
    settings = json.loads((runs / "evals-rl" / "results.json").read_text())["settings"]
    line = next(one for one in text.splitlines() if "--gates" in one and "evals-rl" in one)
    assert line.startswith(f"python -m evals --checkpoint {settings['checkpoint']} --out ")
    assert "--tasks gsm8k bpb" in line
    assert "--limit 8" in line
    assert "--max-batch" not in line  # a default


def test_html_is_self_contained_and_whole(report):
    text = (report / "report.html").read_text()
    pictures = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert len(pictures) == text.count("<img") == 11
    for data in pictures:
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    names = {path.stem for path in (report / "pictures").glob("*.svg")}
    assert names == {path.stem for path in (report / "pictures").glob("*.png")}
    linked = re.findall(r"\]\(pictures/(\w+)\.png\)", (report / "report.md").read_text())
    assert set(linked) == names
    assert text.count("<details>") == 11  # each has its twin of characters


def test_the_same_runs_give_the_same_report(runs, report, tmp_path, capsys):
    assert report_main([str(runs), "--out", str(tmp_path), "--device", "cpu", "--ascii"]) == 0
    printed = capsys.readouterr().out
    for title in ("Loss and bits per byte", "H_res by layer", "Accuracy under fixed gates"):
        assert title in printed
    for one in report.rglob("*.svg"):
        assert one.read_bytes() == (tmp_path / "pictures" / one.name).read_bytes()
    both = [(path / "report.html").read_text() for path in (report, tmp_path)]
    assert both[0].replace(str(report), "OUT") == both[1].replace(str(tmp_path), "OUT")


def test_runs_that_cannot_be_compared_are_said_to_be(runs, checkpoints, tmp_path):
    for name in ("evals-baseline", "evals-mhc"):
        shutil.copytree(runs / name, tmp_path / name)
    path = tmp_path / "evals-mhc" / "results.json"
    results = json.loads(path.read_text())
    results["tasks"]["gsm8k"]["prompts_sha256"] = "other"
    path.write_text(json.dumps(results))
    out = tmp_path / "report"
    assert report_main([str(tmp_path), "--out", str(out), "--device", "cpu"]) == 0
    assert "are not compared: gsm8k of baseline" in (out / "report.md").read_text()


def test_a_task_comes_from_whichever_evaluation_has_it(runs, tmp_path):
    shutil.copytree(runs / "evals-mhc", tmp_path / "evals-mhc")
    whole = json.loads((runs / "evals-mhc" / "results.json").read_text())
    entry = {**whole["tasks"]["gsm8k"], "n_shot": 8, "n": 4}
    for name, tasks, gates in (
        ("evals-other-gates", {"gsm8k_8shot": {**entry, "n": 2}}, "0.5"),
        ("evals-others", {"gsm8k_8shot": entry, "gsm8k": entry}, "learned"),
    ):
        settings = {**whole["settings"], "gates": gates}
        (tmp_path / name).mkdir()
        content = {**whole, "tasks": tasks, "settings": settings}
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    found = find_runs([str(tmp_path)])
    assert found.task(LEARNED_GATES, "gsm8k") == whole["tasks"]["gsm8k"]
    assert found.task(LEARNED_GATES, "gsm8k_8shot") == entry
    assert found.task("mHC, gates 0.5", "gsm8k_8shot") == {**entry, "n": 2}
    assert found.task(LEARNED_GATES, "hellaswag") is None


def test_errors(tmp_path, capsys):
    assert report_main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert report_main([str(tmp_path / "absent")]) == 2
    assert "is not a directory" in capsys.readouterr().err


def test_a_browser_shows_every_picture(report):
    """Headless Chromium: no console error, no picture missing."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        chromium.get((report / "report.html").as_uri())
        assert chromium.get_log("browser") == []
        widths = chromium.execute_script("return [...document.images].map(i => i.naturalWidth)")
        assert len(widths) == 11
        assert min(widths) > 100
    finally:
        chromium.quit()


@pytest.mark.parametrize(
    ("description", "label"),
    [
        ("none: a plain model", "baseline"),
        ("none: without mixing (mhc.projection: identity)", "mHC without mixing"),
        ("learned", "mHC, learned gates"),
    ],
)
def test_streams_that_do_not_mix_are_not_the_baseline(tmp_path, description, label):
    results = {"gates": {"description": description}, "settings": {"gates": "learned"}, "tasks": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert [one.label for one in find_runs([str(tmp_path)]).evaluations] == [label]
