"""One run of lm-evaluation-harness: our engine or its own model, tasks from the hub or files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import torch
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import __file__ as harness_tasks
from lm_eval.tasks._yaml_loader import load_yaml

from evals.harness.settings import HarnessSettings
from evals.problems import read_file, split_file
from mhc_model.checkpoint import find_checkpoint
from mhc_model.errors import ConfigError

# Where the harness keeps a task, and the splits that it reads.
_LOCAL = {
    "gsm8k": ("gsm8k/gsm8k.yaml", ("test",)),
    "gsm8k_8shot": ("gsm8k/gsm8k.yaml", ("train", "test")),
    "hellaswag": ("hellaswag/hellaswag.yaml", ("validation",)),
    "arc_easy": ("arc/arc_easy.yaml", ("test",)),
}


def local_task(name: str, data: str) -> ConfigurableTask:
    """The harness's own task, read from local files instead of the hub.

    Args:
        name: gsm8k, gsm8k_8shot (the first eight training problems), hellaswag or arc_easy.
        data: a directory with gsm8k/, hellaswag/ and arc_easy/.
    """
    file, splits = _LOCAL[name]
    config = load_yaml(Path(harness_tasks).parent / file)
    directory = Path(data) / ("gsm8k" if name.startswith("gsm8k") else name)

    def read(**metadata: Any) -> datasets.DatasetDict:
        found = {}
        for split in splits:
            rows = [row for _, row in read_file(split_file(directory, split))]
            if name == "hellaswag":  # cleaned files have the context whole
                rows = [{"ctx_a": row.get("ctx"), "ctx_b": "", **row} for row in rows]
            found[split] = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict(found)

    for split in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(split) not in splits:
            config.pop(split, None)
    config |= {"custom_dataset": read, "task": name}
    if name == "gsm8k_8shot":
        config |= {"num_fewshot": 8, "fewshot_config": {"sampler": "first_n", "split": "train"}}
    elif name == "gsm8k":
        config["num_fewshot"] = 0
    return ConfigurableTask(config=config)


def run(settings: HarnessSettings) -> dict[str, Any]:
    """Runs the harness; returns its results.

    Raises:
        MHCError: of the checkpoint, the gates or the settings.
    """
    tasks: list[Any] = [
        local_task(task, settings.data) if settings.data and task in _LOCAL else task
        for task in settings.tasks
    ]
    for task in tasks:
        if isinstance(task, ConfigurableTask) and task.OUTPUT_TYPE == "generate_until":
            task.config.generation_kwargs["max_gen_toks"] = settings.max_tokens
    if settings.backend == "hf":
        if settings.gates != "learned":
            raise ConfigError("the harness's hf model has no gates; use --backend engine")
        model, arguments = "hf", _hf_arguments(settings)
    else:
        model = "mhc-gates"
        arguments = {
            "checkpoint": settings.checkpoint,
            "gates": settings.gates,
            "bos": settings.bos,
        }
    return simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=tasks,
        batch_size=settings.batch,
        device=settings.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        limit=settings.limit,
        bootstrap_iters=0,
    )


def _hf_arguments(settings: HarnessSettings) -> dict[str, Any]:
    checkpoint = Path(settings.checkpoint)
    if not (checkpoint / "config.json").exists():  # a run: its newest checkpoint
        checkpoint = find_checkpoint(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return {
        "pretrained": str(checkpoint),
        "trust_remote_code": True,
        "dtype": settings.dtype,
        "add_bos_token": settings.bos,
        # One less than the context: the engine cuts longer texts there.
        "max_length": config["max_position_embeddings"] - 1,
    }
