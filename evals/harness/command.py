"""lm-evaluation-harness on our checkpoints, with gates: its model `mhc-gates` over our engine.

    python -m evals.harness --checkpoint CKPT --gates 0.5 --tasks hellaswag --data DIR --limit 200
    python -m evals.harness --checkpoint CKPT --tasks arc_easy --data DIR --backend hf

The second line uses the harness's own `hf` model on the same directory. `--agree OUT` compares
every sample with those of `python -m evals` in OUT. Needs the extra `eval` (lm-eval). In the
harness's own command line the model is there after `import evals.harness`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import __file__ as harness_tasks
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from pydantic import Field

from evals.gate_choice import GateChoice
from evals.harness.agreement import agreement
from evals.problems.rows import read_file, split_file
from evals.settings import SCORED
from evals.tasks.gsm8k import MAX_TOKENS
from evals.tasks.likelihood import Pair, encode_pair, likelihood_request, read_likelihood
from evals.tasks.plan import Item, run_items
from mhc_model.checkpoint import find_checkpoint
from mhc_model.engine import Completion, Engine, Request, SamplingParams
from mhc_model.errors import ConfigError, EngineError
from mhc_model.files import replace_text
from mhc_model.settings import Settings, parse_command_line, reports_errors


@register_model("mhc-gates")
class GatedLM(LM):
    """A checkpoint with a choice of gates, as the harness sees it."""

    def __init__(
        self,
        checkpoint: str,
        gates: str | float = "learned",
        bos: bool = True,
        batch_size: int | str | None = None,
        device: str | None = None,
        **ignored: Any,
    ) -> None:
        """Loads the checkpoint.

        Args:
            checkpoint: checkpoint or run directory.
            gates: as `--gates` of `python -m evals`.
            bos: put the document separator before every text, as training does.
            batch_size: sequences that run at once; 32 if it is not a number.
            device: None is CUDA if there is one.
            **ignored: what the harness gives every model, such as `max_batch_size`.

        Raises:
            MHCError: of the checkpoint or the gates.
        """
        super().__init__()
        self.bos = bos
        self.choice = GateChoice(str(gates))
        batch = int(batch_size) if str(batch_size or "").isdigit() else 32
        self.engine = Engine.from_checkpoint(checkpoint, batch, device=device or "auto")
        if self.engine.tokenizer is None:
            raise EngineError(f"{checkpoint} has no tokenizer; the harness needs one")
        self.tokenizer = self.engine.tokenizer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        pairs = [encode_pair(self.tokenizer, *request.args, self.bos) for request in requests]
        return [(found[0], found[1]) for found in self._score(pairs)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each whole text, in windows with as much context as there is."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tokenizer.encode(request.args[0]),
                self.tokenizer.start_id,
                # One less: the engine also feeds the last token, to which nothing is asked.
                self.engine.max_seq_len - 1,
                1,
            )
            for window in map(make_disjoint_window, windows):
                pairs.append(Pair(*window))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._score(pairs), strict=True):
            sums[owner] += logprob
        return sums

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continues each context up to a stop string."""
        prompts, sampling = [], []
        for request in requests:
            context, arguments = request.args
            parameters = _sampling(arguments)
            room = self.engine.max_seq_len - parameters.max_tokens
            if room < 1:
                raise EngineError(
                    f"max_gen_toks {parameters.max_tokens} leaves no room for a prompt in a "
                    f"context of {self.engine.max_seq_len}; give fewer"
                )
            prompts.append(self.tokenizer.encode(context, bos=self.bos)[-room:])
            sampling.append(parameters)
        rows = self.choice.rows(self.engine, prompts)
        items = []
        for index, (prompt, parameters) in enumerate(zip(prompts, sampling, strict=True)):
            gates = None if rows is None else rows[index]
            items.append(_item(index, Request(prompt, gates, parameters, str(index))))
        texts = dict(self._run(items))
        return [texts[str(index)].text or "" for index in range(len(requests))]

    @property
    def tokenizer_name(self) -> str:
        return f"mhc-gates-{self.engine.checkpoint_hash}"

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        rows = self.choice.rows(self.engine, [pair.context for pair in pairs])
        found: dict[str, tuple[float, bool]] = {}
        requests: dict[str, Request] = {}
        for index, pair in enumerate(pairs):
            gates = None if rows is None else rows[index]
            request = likelihood_request(pair, gates, self.engine.max_seq_len, str(index))
            if request is not None:
                requests[str(index)] = request
            elif not pair.continuation:
                found[str(index)] = (0.0, True)
            else:
                raise EngineError(
                    f"a continuation of {len(pair.continuation)} tokens does not fit the context "
                    f"of {self.engine.max_seq_len}"
                )
        items = [_item(identity, request) for identity, request in requests.items()]
        for identity, completion in self._run(items):
            found[identity] = tuple(read_likelihood(requests[identity], completion))
        return [found[str(index)] for index in range(len(pairs))]

    def _run(self, items: Sequence[Item]) -> Iterator[tuple[str, Completion]]:
        for item, completions in run_items(self.engine, items):
            yield item.id, completions[0]


def _item(identity: int | str, request: Request) -> Item:
    return Item(str(identity), (request,), lambda completions: {})


def _sampling(arguments: dict[str, Any]) -> SamplingParams:
    """The harness's generation arguments as ours.

    Raises:
        ConfigError: for one that the engine does not have.
    """
    values = dict(normalize_gen_kwargs(arguments, MAX_TOKENS))
    until = values.pop("until")
    sampling = SamplingParams(
        max_tokens=values.pop("max_gen_toks"),
        temperature=float(values.pop("temperature", 0.0)),
        top_p=float(values.pop("top_p", 1.0)),
        top_k=int(values.pop("top_k", 0)),
        stop=tuple(text for text in until if text),
    )
    values.pop("do_sample", None)
    if values:
        raise ConfigError(f"the engine has no {', '.join(values)}; leave them out of gen_kwargs")
    return sampling


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


class HarnessSettings(Settings):
    """Configuration of `python -m evals.harness`."""

    checkpoint: str = Field(
        description="checkpoint or run directory; for hf any directory that transformers reads"
    )
    tasks: tuple[str, ...] = Field(min_length=1, description="names of the harness's tasks")
    gates: str = Field("learned", description="as --gates of python -m evals; not for hf")
    backend: Literal["engine", "hf"] = Field(
        "engine", description="our engine, or the harness's own model `hf`"
    )
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="of the harness's model hf; ours computes in float32"
    )
    data: str | None = Field(
        None,
        description="a directory with gsm8k/, hellaswag/ and arc_easy/ for the tasks that have "
        "one there; none reads everything from the hub",
    )
    limit: int | None = Field(None, ge=1, description="the first N problems; none takes all")
    bos: bool = Field(True, description="put the document separator before every text")
    batch: int = Field(16, ge=1, description="sequences at once")
    max_tokens: int = Field(MAX_TOKENS, ge=1, description="most tokens of a generated answer")
    device: str | None = Field(None, description="cpu, cuda, ...; none is CUDA if there is one")
    out: str | None = Field(None, description="file for the harness's results with all samples")
    agree: str | None = Field(
        None, description="results directory of python -m evals whose samples should be the same"
    )


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


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where samples disagree, or 2 after an error of the user's."""
    settings = parse_command_line(
        HarnessSettings, "evals.harness", "lm-evaluation-harness on our checkpoints.", argv
    )
    results = run(settings)
    if settings.out is not None:
        replace_text(Path(settings.out), json.dumps(results, default=str) + "\n")
    for task, scores in results["results"].items():
        print(task, json.dumps({k: v for k, v in scores.items() if isinstance(v, float)}))
    if settings.agree is None:
        return 0
    found = agreement(
        results, Path(settings.agree), [task for task in settings.tasks if task in SCORED]
    )
    for task in found:
        print(task.line())
    return 0 if all(task.agrees for task in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
