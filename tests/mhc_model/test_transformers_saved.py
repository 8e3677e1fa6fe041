"""What transformers saved of a model of ours, read by everything that reads our checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from converted_files import PADDED, TEMPLATE, TEXTS, converted_files
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from mhc_model import (
    CheckpointError,
    Decoder,
    Engine,
    MHCConfig,
    ModelConfig,
    Request,
    SamplingParams,
    load_checkpoint,
    save_checkpoint,
)
from mhc_model.__main__ import main
from mhc_model.checkpoint import checkpoint_hash, find_checkpoint, is_own
from mhc_model.conversion import convert
from mhc_model.huggingface import MHCGatesForCausalLM
from mhc_model.tokenizer import FastTokenizer, Tokenizer, load_tokenizer

pytestmark = pytest.mark.usefixtures("private_module_cache")

OURS = Tokenizer.train(["Question: Tom has 12 apples.", "naïve 北京"], vocab_size=280)
THEIRS = FastTokenizer(
    {**converted_files(), "chat_template.jinja": TEMPLATE.encode()}, PADDED, None, [302, 300]
)


def decoder(vocab_size: int, mhc: MHCConfig | None) -> Decoder:
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 16, "max_seq_len": 48}
    model = Decoder(ModelConfig(vocab_size=vocab_size, mhc=mhc, **sizes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(params=["ours", "converted", "plain"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of ours, and what transformers made of it."""
    tokenizer = OURS if request.param == "ours" else THEIRS
    mhc = None if request.param == "plain" else MHCConfig()
    save_checkpoint(tmp_path / "a", decoder(tokenizer.vocab_size, mhc), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a", trust_remote_code=True)
    model.save_pretrained(tmp_path / "b")
    AutoTokenizer.from_pretrained(tmp_path / "a", trust_remote_code=True).save_pretrained(
        tmp_path / "b"
    )
    return tmp_path / "a", tmp_path / "b"


@torch.no_grad()
def test_the_engine_reads_it(pair: tuple[Path, Path]) -> None:
    first, second = map(load_checkpoint, pair)
    assert second.model.config == first.model.config
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert first.tokenizer is not None
    assert second.tokenizer is not None
    assert type(first.tokenizer) is type(second.tokenizer)
    for text in TEXTS:
        assert first.tokenizer.encode(text, bos=True) == second.tokenizer.encode(text, bos=True)
    for name in ("vocab_size", "bos_id", "eos_ids", "special_tokens"):
        assert getattr(first.tokenizer, name) == getattr(second.tokenizer, name)
    assert checkpoint_hash(pair[1]) == second.content_hash
    assert load_checkpoint(pair[1]).content_hash == second.content_hash
    request = Request([1, 2, 3], sampling=SamplingParams(max_tokens=5))
    [expected], [found] = (
        Engine.from_checkpoint(path, max_batch=1).generate([request]) for path in pair
    )
    assert expected.tokens == found.tokens


def test_transformers_reads_it_again(pair: tuple[Path, Path]) -> None:
    assert (pair[1] / "modeling_mhc_gates.py").exists()
    assert not (pair[1] / "huggingface.py").exists()
    model, info = AutoModelForCausalLM.from_pretrained(
        pair[1], trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values())
    assert type(model).__name__ == "MHCGatesForCausalLM"


def test_convert_and_validate_read_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert main(["convert", "--source", str(pair[1]), "--out", str(tmp_path / "c")]) == 0
    again, expected = load_checkpoint(tmp_path / "c"), load_checkpoint(pair[0])
    assert (tmp_path / "c" / "manifest.json").exists()
    assert again.model.config == expected.model.config
    assert again.content_hash == expected.content_hash or again.tokenizer.files != {}
    paths = ["--original", str(pair[1]), "--converted", str(tmp_path / "c")]
    assert main(["validate", *paths, "--max-new-tokens", "2"]) == 0
    short = convert(pair[1], tmp_path / "short", max_seq_len=16, dtype=torch.bfloat16)
    assert short.model.config.max_seq_len == 16
    assert short.model.embedding.weight.dtype == torch.bfloat16
    assert main(["validate-model", "--checkpoint", str(pair[1])]) == 0


def test_streams_of_a_model_of_ours_stay(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keeps them"):
        convert(pair[1], tmp_path / "c", streams=2)


def test_the_chat_template_is_kept(pair: tuple[Path, Path]) -> None:
    expected = None if load_tokenizer(pair[0]).files.keys() == OURS.files.keys() else TEMPLATE
    for path in pair:
        theirs = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        assert theirs.chat_template == expected


def test_a_template_beside_a_tokenizer_of_ours_is_kept(tmp_path: Path) -> None:
    OURS.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    kept = load_tokenizer(tmp_path)
    assert kept.files["chat_template.jinja"] == TEMPLATE.encode()
    assert kept.encode("Tom") == OURS.encode("Tom")


def test_shards_and_bfloat16(tmp_path: Path) -> None:
    model = decoder(300, MHCConfig())
    save_checkpoint(tmp_path / "a", model)
    theirs = MHCGatesForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "b", max_shard_size="10KB")
    assert (tmp_path / "b" / "model.safetensors.index.json").exists()
    loaded = load_checkpoint(tmp_path / "b").model
    assert loaded.embedding.weight.dtype == torch.bfloat16
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name]), name


def test_more_tokens(tmp_path: Path) -> None:
    """resize_token_embeddings and tokens that were added to the tokenizer."""
    save_checkpoint(tmp_path / "a", decoder(OURS.vocab_size, MHCConfig()), OURS)
    theirs = MHCGatesForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a", trust_remote_code=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    theirs.resize_token_embeddings(len(tokenizer))
    theirs.save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    loaded = load_checkpoint(tmp_path / "b")
    assert loaded.model.config.vocab_size == OURS.vocab_size + 1
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.bos_id == OURS.bos_id
    assert loaded.tokenizer.special_tokens["<|im_end|>"] == OURS.vocab_size
    assert loaded.tokenizer.encode("Tom", bos=True) == OURS.encode("Tom", bos=True)


def test_what_the_trainer_saved(tmp_path: Path) -> None:
    """A run of transformers' Trainer, with gradient checkpointing, and its newest checkpoint."""
    save_checkpoint(tmp_path / "a", decoder(OURS.vocab_size, MHCConfig()), OURS)
    model = MHCGatesForCausalLM.from_pretrained(tmp_path / "a")
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(280, (8, 12)).tolist()]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a", trust_remote_code=True)
    tokenizer.pad_token = tokenizer.eos_token  # as people do for the Trainer
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert not torch.equal(before, model.model.layers[0].mlp.up_proj.weight)
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    engine = Engine.from_checkpoint(tmp_path / "run", max_batch=1)
    assert engine.tokenizer is not None
    assert engine.tokenizer.encode("Tom has 12") == OURS.encode("Tom has 12")
    trainer.save_model()
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run"
    for name, value in load_checkpoint(tmp_path / "run").model.state_dict().items():
        assert torch.equal(value, model.model.state_dict()[name]), name


def test_ours_without_its_manifest_is_not_taken_for_theirs(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", decoder(300, None))
    assert is_own(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    assert not is_own(tmp_path / "a")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "a")


def test_sizes_of_theirs_are_checked_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", decoder(300, MHCConfig()))
    MHCGatesForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    path = tmp_path / "b" / "config.json"
    entries = json.loads(path.read_text())
    entries["mhc_gates"]["n_layers"] = 10**9
    path.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="1000000000 layers"):
        load_checkpoint(tmp_path / "b")
