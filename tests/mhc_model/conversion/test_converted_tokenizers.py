"""Converted models with their tokenizers, as transformers, the engine and lm-eval read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from converted_files import PADDED, TEMPLATE, TEXTS
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3Config

from mhc_model import CheckpointError, Engine, Request, SamplingParams, load_checkpoint
from mhc_model.conversion import convert, export
from mhc_model.tokenizer import FastTokenizer

pytestmark = pytest.mark.usefixtures("private_module_cache")


@pytest.fixture(scope="module")
def original(
    theirs: Callable[..., PreTrainedModel],
    files: dict[str, bytes],
    fast_tokenizer: FastTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[PreTrainedModel, Path]:
    """A Qwen3 with a padded vocabulary that ends at two tokens."""
    directory = tmp_path_factory.mktemp("qwen3") / "original"
    values = theirs("qwen3").config.to_dict()
    values |= {"vocab_size": PADDED, "bos_token_id": None, "eos_token_id": None, "dtype": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.generation_config.eos_token_id = [
        fast_tokenizer.special_tokens["<|im_end|>"],
        fast_tokenizer.special_tokens["<|endoftext|>"],
    ]
    model.save_pretrained(directory)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return model, directory


@pytest.fixture(scope="module", params=[0, 4], ids=["plain", "mhc"])
def converted(
    request: pytest.FixtureRequest,
    original: tuple[PreTrainedModel, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("converted") / "checkpoint"
    return convert(original[1], path, streams=request.param).path


@torch.no_grad()
def test_auto_classes_load_the_checkpoint(
    original: tuple[PreTrainedModel, Path], converted: Path
) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(
        converted, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values())
    rows = torch.randint(PADDED, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = original[0](rows).logits
    assert ((model(rows).logits - expected).abs().max() / expected.abs().max()) < 1e-5
    assert model.generation_config.eos_token_id == original[0].generation_config.eos_token_id
    theirs = AutoTokenizer.from_pretrained(converted, trust_remote_code=True)
    ours = load_checkpoint(converted).tokenizer
    assert ours is not None
    for text in TEXTS[:-1]:
        assert theirs(text)["input_ids"] == ours.encode(text)
    chat = [{"role": "user", "content": "hi"}]
    rendered = theirs.apply_chat_template(chat, tokenize=False)
    assert theirs.apply_chat_template(chat)["input_ids"] == ours.encode_marked(rendered)


def test_the_engine_generates_what_transformers_does(
    original: tuple[PreTrainedModel, Path], converted: Path
) -> None:
    engine = Engine.from_checkpoint(converted, max_batch=4, device="cpu")
    assert engine.tokenizer is not None
    rows = engine.tokenizer.encode_batch(["Question: Tom", "Answer:", "12 + 7 ="], bos=True)
    sampling = SamplingParams(max_tokens=12)
    plain = engine.model.config.mhc is None
    gates = [None, None, None] if plain else [None, 0.0, [0.1, 0.5, 1.0]]
    requests = [
        Request(row, gates=g, sampling=sampling) for row, g in zip(rows, gates, strict=True)
    ]
    for row, completion in zip(rows, engine.generate(requests), strict=True):
        made = original[0].generate(torch.tensor([row]), max_new_tokens=12, do_sample=False)
        expected = [i for i in made[0, len(row) :].tolist() if i not in engine.tokenizer.eos_ids]
        assert list(completion.tokens) == expected


def test_each_end_stops_the_engine(original: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    """The token that is generated is made an end, first or second of them."""
    checkpoint = convert(original[1], tmp_path / "plain", streams=0)
    tokenizer = checkpoint.tokenizer
    assert isinstance(tokenizer, FastTokenizer)
    row = tokenizer.encode("Question:")
    request = Request(row, sampling=SamplingParams(max_tokens=6))
    [free] = Engine(checkpoint.model).generate([request])
    for ends in ([free.tokens[3], 0], [0, free.tokens[3]]):
        ending = FastTokenizer(tokenizer.files, PADDED, None, ends)
        engine = Engine(checkpoint.model, ending)
        [completion] = engine.generate([request])
        assert completion.tokens == free.tokens[: free.tokens.index(free.tokens[3])]
        assert completion.finish_reason == "stop"


def test_the_hash_covers_the_tokenizer(converted: Path, tmp_path: Path) -> None:
    path = converted / "tokenizer.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"<think>", b"<thinK>"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json was altered"):
        load_checkpoint(converted)
    path.write_bytes(whole)
    assert load_checkpoint(converted).tokenizer is not None


def test_the_export_keeps_the_tokenizer(
    converted: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    export(converted, tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template == TEMPLATE


def test_lm_eval_reads_the_checkpoint(
    original: tuple[PreTrainedModel, Path], converted: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is an optional tool")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    options = {"device": "cpu", "dtype": "float32", "batch_size": 1}
    ours = HFLM(pretrained=str(converted), trust_remote_code=True, **options)
    theirs = HFLM(pretrained=str(original[1]), **options)
    pairs = [("Question: Tom has", " 12 apples"), ("Answer:", " 19")]
    requests = [
        Instance("loglikelihood", {}, pair, i, ("task", i, 1)) for i, pair in enumerate(pairs)
    ]
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    for (value, greedy), (wanted, their_greedy) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, abs=1e-3)
        assert greedy == their_greedy
