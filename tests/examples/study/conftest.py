"""A tiny study, and directories that look as if it had run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.study import StudyConfig
from mhc_model.settings import validate_settings

TRAIN = {
    "steps": 4,
    "total_batch_tokens": 384,
    "device_batch": 3,
    "loss_on": "answers",
    "eval_every": 2,
    "checkpoint_every": 2,
    "data": {
        "builtin_levels": [1],
        "builtin_count": 200,
        "vocab_size": 280,
        "validation_documents": 4,
    },
    "model": {
        "n_layers": 1,
        "n_heads": 2,
        "d_model": 32,
        "max_seq_len": 128,
        "mhc": {"n_streams": 2},
    },
    "workers": {"num_workers": 1},
}


@pytest.fixture
def study_config(tmp_path) -> Callable[..., StudyConfig]:
    """`study_config(**fields)`: plain and mhc, one round of calibration, no gates."""

    def make(**fields: Any) -> StudyConfig:
        values: dict[str, Any] = {
            "name": "tiny",
            "storage": str(tmp_path),
            "seeds": [0, 1],
            "train": TRAIN,
            "variants": {"plain": {"model.mhc": None}, "mhc": {}},
            "evals": {"tasks": ["gsm8k"], "limit": 6, "max_tokens": 4},
            "calibration": {"rounds": 1, "steps": 3, "untimed": 1},
        }
        return validate_settings(StudyConfig, values | fields, "test")

    return make


@pytest.fixture
def pretend() -> Callable[..., None]:
    """`pretend(directory, seed, run, solved, bits)`: files of a training and its evaluation."""

    def write(directory: Path, seed: int, run: str, solved: list[int], bits: float) -> None:
        training = directory / f"seed-{seed}" / run
        evals = directory / f"seed-{seed}" / f"{run}-evals"
        training.mkdir(parents=True)
        evals.mkdir()
        rows = [{"step": 2, "val_bpb": bits + 1}, {"step": 3}, {"step": 4, "val_bpb": bits}]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (training / "metrics.jsonl").write_text(text)
        samples = [
            {"task": "gsm8k", "id": f"p{i}", "strict": bool(right), "tokens": 3}
            for i, right in enumerate(solved)
        ]
        text = "".join(json.dumps(row) + "\n" for row in samples)
        (evals / "samples.jsonl").write_text(text)
        tasks = {"gsm8k": {"n": len(solved), "generated_tokens": 3 * len(solved)}}
        (evals / "results.json").write_text(json.dumps({"tasks": tasks}))

    return write


@pytest.fixture
def pretend_gates() -> Callable[..., None]:
    """`pretend_gates(directory, seed, name, rewards)`: an ablation's files; arm -> rewards."""

    def write(directory: Path, seed: int, name: str, rewards: dict[str, list[float]]) -> None:
        place = directory / f"seed-{seed}" / name
        runs, arms = [], {}
        for arm, own in rewards.items():
            learns = arm in ("ppo:global", "best_constant")
            runs.append({"arm": arm, "seed": seed if learns else None})
            folder = arm.replace(":", "-") + (f"-seed{seed}" if learns else "")
            (place / "arms" / folder).mkdir(parents=True)
            text = "".join(json.dumps({"reward": value}) + "\n" for value in own)
            (place / "arms" / folder / "samples.jsonl").write_text(text)
            mean = sum(own) / len(own)
            levels = {"1": {"tokens": 4.0}, "2": {"tokens": 20.0}}
            arms[arm] = {"accuracy": 0.5, "tokens": 9.0, "reward": mean, "levels": levels}
        second = f"ppo:global seed {seed}"
        tests = [
            {"metric": "reward", "first": "learned", "second": second, "p_holm": 0.001},
            {
                "metric": "reward",
                "first": f"best_constant seed {seed}",
                "second": second,
                "p_holm": 0.5,
            },
        ]
        facts = {
            "metric": "reward",
            "budget": 32,
            "n": len(own),
            "data": "builtin:1,2",
            "token_cost": 0.008,
            "runs": runs,
            "arms": arms,
            "bound": {"accuracy": 0.75, "reward": 0.6},
            "tests": tests,
            "further_tests": [],
        }
        (place / "results.json").write_text(json.dumps(facts))

    return write
