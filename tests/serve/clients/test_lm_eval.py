"""lm-evaluation-harness' `local-completions` against the server gives what its own loop over the
model gives in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mhc_model import Engine, Request, SamplingParams, save_checkpoint
from mhc_model.checkpoint import load_checkpoint

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `eval`)")
pytest.importorskip("tenacity", reason="lm-eval's API models need tenacity (extra `eval`)")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

CONTEXT = 640
MAX_NEW = 24
WORDS = ["wind", "rain", "a stone", "the sun", "ice", "a magnet", "salt", "naïve café", "東京"]


class InProcess(TemplateLM):
    """The plainest possible model of the harness: whole forward passes, one text at a time."""

    def __init__(self, checkpoint: Path, bos: bool) -> None:
        super().__init__()
        loaded = load_checkpoint(checkpoint)
        assert loaded.tokenizer is not None
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.start = [self.tokenizer.bos_id] if bos else []

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    def tok_encode(self, string: str, **arguments: Any) -> list[int]:
        return self.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, **arguments) -> list[tuple[float, bool]]:
        answers = []
        for _, context, continuation in requests:
            tokens = torch.tensor([[*self.start, *context, *continuation]])
            with torch.inference_mode():
                logprobs = self.model(tokens)[0].log_softmax(dim=-1)
            first = len(self.start) + len(context)
            rows = logprobs[first - 1 : -1]
            chosen = tokens[0, first:]
            score = rows.gather(-1, chosen[:, None]).sum().item()
            answers.append((score, bool((rows.argmax(dim=-1) == chosen).all())))
        return answers

    def loglikelihood_rolling(self, requests, **arguments) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests, **arguments) -> list[str]:
        engine = Engine(self.model, self.tokenizer, max_batch=1)
        texts = []
        for context, options in (request.args for request in requests):
            prompt = [*self.start, *self.tokenizer.encode(context)]
            sampling = SamplingParams(max_tokens=MAX_NEW, stop=tuple(options["until"]))
            texts.append(engine.generate([Request(prompt, sampling=sampling)])[0].text)
        return texts


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tokenizer, tiny_model) -> Path:
    directory = tmp_path_factory.mktemp("scored") / "scored"
    save_checkpoint(
        directory, tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT), tokenizer
    )
    return directory


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[dict[str, Any]]:
    """The harness's own definitions of ARC-Easy and GSM8K, on a few local lines."""
    arc = [
        {
            "question": f"What moves {WORDS[i]}?",
            "choices": {"text": [WORDS[(i + k) % 9] for k in range(4)], "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(4)
    ]
    gsm8k = [
        {
            "question": f"Tom has {i} apples and buys 5 more. How many?",
            "answer": f"{i} + 5 = {i + 5}\n#### {i + 5}",
        }
        for i in range(3)
    ]
    directory = tmp_path_factory.mktemp("tasks")
    return [
        _local(directory, "arc/arc_easy.yaml", arc, {}),
        _local(directory, "gsm8k/gsm8k.yaml", gsm8k, {"num_fewshot": 2}),
    ]


def _local(
    directory: Path, name: str, lines: list[dict], changes: dict[str, Any]
) -> dict[str, Any]:
    path = directory / f"{Path(name).stem}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / name)
    files = {split: str(path) for split in ("train", "validation", "test")}
    del config["dataset_name"]
    config.pop("tag", None)
    config.pop("validation_split", None)
    config["generation_kwargs"] = {**config.get("generation_kwargs", {}), "max_gen_toks": MAX_NEW}
    if config["output_type"] == "multiple_choice":
        del config["generation_kwargs"]
    return {
        **config,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(directory / "cache")},
        **changes,
    }


def evaluated(model: TemplateLM, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    # The harness changes what it is given.
    return simple_evaluate(
        model=model,
        tasks=json.loads(json.dumps(tasks)),
        task_manager=TaskManager(include_defaults=False),  # reading all its tasks takes long
        bootstrap_iters=0,
    )


@pytest.mark.parametrize("as_tokens", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_harness_gets_the_same_over_http(
    serving, make_service, make_engine, scored, tasks, as_tokens
):
    with serving(make_service(make_engine(scored, max_batch=8))) as url:
        remote = evaluated(
            LocalCompletionsAPI(
                base_url=f"{url}/v1/completions",
                model="tiny",
                tokenizer=str(scored),
                tokenizer_backend="huggingface",
                tokenized_requests=as_tokens,
                num_concurrent=4,
                batch_size=3,
                max_length=CONTEXT,
                max_retries=1,
                max_gen_toks=MAX_NEW,
            ),
            tasks,
        )
    # The server puts the separator before a text, as in training, and takes tokens as they are.
    local = evaluated(InProcess(scored, bos=not as_tokens), tasks)
    assert remote["results"].keys() == local["results"].keys() == {"arc_easy", "gsm8k"}
    for task, size in (("arc_easy", 4), ("gsm8k", 3)):
        metrics = {key: value for key, value in local["results"][task].items() if "," in key}
        for key, value in metrics.items():
            assert remote["results"][task][key] == value, key
        pairs = list(zip(remote["samples"][task], local["samples"][task], strict=True))
        assert len(pairs) >= size
        for mine, theirs in pairs:
            assert mine["doc_id"] == theirs["doc_id"]
            if task == "gsm8k":
                assert mine["resps"] == theirs["resps"]
                assert mine["resps"][0][0]
                continue
            for answer, expected in zip(mine["resps"], theirs["resps"], strict=True):
                assert float(answer[0][0]) == pytest.approx(float(expected[0][0]), abs=1e-4)
                assert str(answer[0][1]) == str(expected[0][1])


@pytest.mark.parametrize("as_tokens", [True, False])
def test_items_longer_than_the_context_are_scored_where_the_harness_cuts_them(
    serving, make_service, make_engine, scored, as_tokens
):
    """It leaves one place, for a token that it asks for. The server puts one more before a text."""
    items = [
        ("7 + 5 = 12 " * repeats, continuation)
        for repeats in (3, 400)
        for continuation in ("7 + 5 = 12", "7 + 5")
    ]
    with serving(make_service(make_engine(scored, max_batch=8))) as url:
        api = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions",
            model="tiny",
            tokenizer=str(scored),
            tokenizer_backend="huggingface",
            tokenized_requests=as_tokens,
            batch_size=1,
            max_length=CONTEXT,
            max_retries=1,
        )
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=item, idx=i)
            for i, item in enumerate(items)
        ]
        answers = api.loglikelihood(requests)
    local = InProcess(scored, bos=not as_tokens)
    for (context, continuation), (score, greedy) in zip(items, answers, strict=True):
        first, rest = local._encode_pair(context, continuation)
        cut = max(0, len(first) + len(rest) - (CONTEXT - 1))
        ((expected, is_greedy),) = local._loglikelihood_tokens([(None, first[cut:], rest)])
        assert score == pytest.approx(expected, abs=1e-3)
        assert greedy == is_greedy


def test_a_scored_prompt_may_fill_the_context_and_no_more(post, make_service, make_engine, scored):
    service = make_service(make_engine(scored))
    body = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    answer = post(service, prompt=[5] * CONTEXT, **body)
    assert len(answer.json()["choices"][0]["logprobs"]["tokens"]) == CONTEXT + 1
    for changes in ({"prompt": [5] * (CONTEXT + 1)}, {"max_tokens": 2}, {"echo": False}):
        refused = post(service, **{"prompt": [5] * CONTEXT, **body, **changes})
        assert refused.json()["error"]["code"] == "context_length_exceeded"
