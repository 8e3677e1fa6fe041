"""GGUF files written with the package that others read them with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mhc_model import CheckpointError, load_checkpoint
from mhc_model.conversion import convert, validate_equivalence
from mhc_model.conversion.gguf_files import INSIDE, OUTSIDE, to_half_split
from mhc_model.tokenizer import FastTokenizer, Tokenizer

gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
KEYS = {theirs: name for name, theirs in OUTSIDE.items()}


def to_interleaved(weight: Tensor, heads: int) -> Tensor:
    """What llama.cpp's converter does to queries and keys."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def gguf_name(key: str) -> str:
    if key in KEYS:
        return KEYS[key]
    _, _, index, rest = key.split(".", 3)
    part = {theirs: name for name, theirs in INSIDE.items()}[rest.removesuffix(".weight")]
    return f"blk.{index}.{part}.weight"


def write(
    model: PreTrainedModel,
    path: Path,
    *,
    tokens: bool = True,
    split: str = "smollm",
    change: Callable[[Any], object] = lambda writer: None,
    quantised: str = "",
) -> None:
    """A file as llama.cpp's converter writes it."""
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if tokens:
        add_tokens(writer, config.vocab_size, split)
    change(writer)
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            value = to_interleaved(value, value.shape[0] // config.head_dim)
        data = value.numpy()
        if quantised and quantised in key:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(key), gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(key), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokens(writer: Any, size: int, split: str, begins: bool | None = False) -> None:
    """Bytes, two merges and special tokens, up to `size` ids."""
    from mhc_model.tokenizer.tokenizer_json import byte_alphabet

    names = [*SPECIALS, *byte_alphabet(), "ab", "12"]
    names = names[:size]
    writer.add_tokenizer_model("gpt2")
    if split:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(names)
    writer.add_token_types([3 if name in SPECIALS else 1 for name in names])
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if begins is not None:
        writer.add_add_bos_token(begins)
    writer.add_chat_template("{{ messages[0].content }}")


@pytest.fixture(scope="module")
def models(theirs: Callable[..., PreTrainedModel]) -> dict[str, PreTrainedModel]:
    """A grouped, untied Llama and a tied Qwen3 with room for 256 bytes."""
    built = {}
    for name in ("llama", "qwen3"):
        model = theirs(name)
        model.resize_token_embeddings(272, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(0, 0.05)
        built[name] = model.eval()
    return built


def rows(seed: int = 0) -> Tensor:
    return torch.randint(272, (2, 40), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_logits_are_those_of_the_model(
    models: dict[str, PreTrainedModel], name: str, tmp_path: Path
) -> None:
    write(models[name], tmp_path / "model.gguf")
    checkpoint = convert(tmp_path, tmp_path / "mhc")  # a directory with one GGUF file
    expected = models[name](rows()).logits
    found = checkpoint.model(rows())
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    assert checkpoint.model.config.tied is (name == "qwen3")
    result = validate_equivalence(
        tmp_path / "model.gguf", checkpoint.path, prompts=rows().tolist(), max_new_tokens=2
    )
    assert result.passed, str(result)


def test_interleaving_is_undone() -> None:
    weight = torch.randn(24, 5)
    assert torch.equal(to_half_split(to_interleaved(weight, 3), 3), weight)


def test_quantised_tensors(models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    write(models["llama"], tmp_path / "model.gguf", quantised="gate_proj")
    checkpoint = convert(tmp_path / "model.gguf", tmp_path / "plain", streams=0)
    weight = models["llama"].state_dict()["model.layers.1.mlp.gate_proj.weight"]
    found = checkpoint.model.layers[1].mlp.gate_proj.weight
    block = weight.view(-1, 32).abs().amax(1)  # Q8_0: 8 bits and a scale for each 32 weights
    difference = (found - weight).view(-1, 32).abs().amax(1)
    assert difference.max() > 0
    assert (difference < block / 127).all()
    up = checkpoint.model.layers[1].mlp.up_proj.weight
    assert torch.equal(up, models["llama"].state_dict()["model.layers.1.mlp.up_proj.weight"])


def test_the_tokenizer(models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    write(models["llama"], tmp_path / "model.gguf")
    path = convert(tmp_path / "model.gguf", tmp_path / "plain", streams=0).path
    tokenizer = load_checkpoint(path).tokenizer
    assert isinstance(tokenizer, FastTokenizer)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (272, None, (2, 0))
    assert tokenizer.special_tokens == {name: i for i, name in enumerate(SPECIALS)}
    text = "abab 1212 naïve 北京\n<|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.token_bytes(i) for i in ids]
    assert pieces[:2] == [b"ab", b"ab"]
    assert b"12" not in pieces, "every digit stands alone"
    assert b'"chat_template"' in (path / "tokenizer_config.json").read_bytes()


def test_every_split_that_is_known(models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    joined = {}
    for split in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        write(models["llama"], tmp_path / f"{split}.gguf", split=split)
        path = convert(tmp_path / f"{split}.gguf", tmp_path / split, streams=0).path
        tokenizer = Tokenizer.from_directory(path)
        for text in ("It's 1234 ab  x\n\n", "e\u00e9 北京"):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        joined[split] = [tokenizer.token_bytes(i) for i in tokenizer.encode("12")] == [b"12"]
    assert joined == {"gpt-2": True, "smollm": False, "llama-bpe": True, "qwen2": False}


def test_what_is_refused(models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            convert(path, tmp_path / "out")

    path.write_bytes(b"not a model, but long enough to be looked at" * 4)
    refused(r"model\.gguf is not a readable GGUF file")
    write(models["llama"], path, split="exotic")
    refused(r"model\.gguf: .*tokenizer\.ggml\.pre 'exotic'")
    write(models["llama"], path, tokens=False)
    assert convert(path, tmp_path / "bare", streams=0).tokenizer is None
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(r"model\.gguf")
    write(
        models["llama"], path, change=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    )
    refused("scaled.*'yarn'")
    write(
        models["llama"],
        path,
        change=lambda w: w.add_tensor("blk.0.ffn_up_exps.weight", np.zeros(4, np.float32)),
    )
    refused(r"model\.gguf has the tensor 'blk\.0\.ffn_up_exps\.weight'")
    other = gguf.GGUFWriter(path, "mamba")
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    refused(r"general\.architecture is 'mamba'; supported in GGUF files: llama, qwen3")


def test_two_files_in_a_directory(models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no config\.json and 2 GGUF files"):
        convert(tmp_path, tmp_path / "out")
