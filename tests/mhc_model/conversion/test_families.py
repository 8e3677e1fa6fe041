"""transformers' own classes against ours with their weights, for each family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from variant_cases import VARIANTS

from mhc_model import CheckpointError, Decoder, MHCConfig, ModelConfig, save_checkpoint
from mhc_model.checkpoint import read_model_config
from mhc_model.commands.convert import main
from mhc_model.conversion import FAMILIES, convert, export, validate_equivalence
from mhc_model.conversion.convert import build, equal_at_init
from mhc_model.conversion.export import streams_as_started
from mhc_model.conversion.families import family_for, family_of
from mhc_model.conversion.sources import Source, read_source
from mhc_model.conversion.state_dicts import from_transformers, to_transformers
from mhc_model.decoder import KVCache
from mhc_model.errors import ConfigError

Models = Callable[..., PreTrainedModel]


def tokens(rows: int = 2, length: int = 50, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(97, (rows, length), generator=generator)


def source_of(model: PreTrainedModel) -> Source:
    entries, tensors = model.config.to_dict(), model.state_dict()
    return Source("model", Path("config.json"), entries, tensors, {})


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def saved(
    variant: str, theirs: Models, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, Path]:
    """A model and the directory that transformers saved it to."""
    directory = tmp_path_factory.mktemp(variant) / "original"
    model = theirs(variant)
    model.save_pretrained(directory)
    return model, directory


@torch.no_grad()
def test_logits_are_those_of_transformers(variant: str, theirs: Models) -> None:
    model, ours = theirs(variant), build(source_of(theirs(variant)))
    expected = model(tokens()).logits
    assert expected.std() > 0.1
    assert error(ours(tokens()), expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("preset", ["default", "uniform", "lite"])
def test_streams_change_nothing_at_the_start(variant: str, theirs: Models, preset: str) -> None:
    model = theirs(variant)
    ours = build(source_of(model), equal_at_init(preset, 4))
    expected = model(tokens()).logits
    for gates in (None, torch.zeros(2, 6), torch.rand(2, 6)):
        assert error(ours(tokens(), gates), expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_member_of_the_family_starts_as_the_original(
    family: str, name: str, theirs: Models
) -> None:
    model = theirs(family)
    ours = build(source_of(model), equal_at_init("default", 4, VARIANTS[name]))
    expected = model(tokens()).logits
    assert error(ours(tokens()), expected) < 1e-5
    assert streams_as_started(ours)
    with torch.no_grad():
        ours.stream_modules()[-1].base[0] += 0.1
    assert not streams_as_started(ours)


def test_converted_as_a_member_of_the_family(theirs: Models, tmp_path: Path) -> None:
    theirs("gpt2").save_pretrained(tmp_path / "original")
    fields = ["--projection", "kronecker", "--collapse", "learned", "--out", str(tmp_path / "mhc")]
    assert main(["--source", str(tmp_path / "original"), *fields]) == 0
    mhc = read_model_config(tmp_path / "mhc").mhc
    assert (mhc.projection, mhc.collapse, mhc.dynamic) == ("kronecker", "learned", True)
    assert validate_equivalence(tmp_path / "original", tmp_path / "mhc", max_new_tokens=2).passed
    with pytest.raises(ConfigError, match="streams is 0, a plain model, which has no projection"):
        convert(tmp_path / "original", tmp_path / "b", streams=0, mhc={"projection": "free"})


@torch.no_grad()
def test_cached_steps_are_the_whole_pass(variant: str, theirs: Models) -> None:
    model = build(source_of(theirs(variant)), equal_at_init("default", 2))
    row = tokens(2, 12)
    cache = KVCache.allocate(model.config, 2)
    steps = [
        model(row[:, :5], cache=cache),
        *(model(row[:, i : i + 1], cache=cache) for i in range(5, 12)),
    ]
    torch.testing.assert_close(torch.cat(steps, 1), model(row), rtol=0, atol=1e-5)


def test_tensors_come_back_bit_for_bit(variant: str, theirs: Models) -> None:
    model = theirs(variant)
    entries, tensors = model.config.to_dict(), model.state_dict()
    family = family_of(entries, "config.json")
    config = family.model_config(entries, "config.json")
    state = from_transformers(family, config, tensors)
    assert set(state) == set(Decoder(config, seed=None).state_dict())
    back = to_transformers(family, config, state)
    tied = {family.head} if config.tied else set()
    assert set(back) == set(tensors) - tied
    assert all(torch.equal(value, tensors[key]) for key, value in back.items())
    assert family_for(config) is family


@torch.no_grad()
def test_a_directory_there_and_back(saved: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    """convert, validate, export: transformers loads the export with the original's tensors."""
    model, directory = saved
    checkpoint = convert(directory, tmp_path / "mhc", streams=4)
    assert checkpoint.model.config.mhc is not None
    rows = tokens(3, 20).tolist()
    result = validate_equivalence(directory, checkpoint.path, prompts=rows, max_new_tokens=4)
    assert result.passed, str(result)
    assert (result.generated, len(result.sublayers)) == (3, 6)
    export(checkpoint.path, tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    assert type(back) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert torch.equal(back(tokens()).logits, model(tokens()).logits)


def test_bfloat16_and_shards(variant: str, theirs: Models, tmp_path: Path) -> None:
    model = theirs(variant).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "original", max_shard_size="20KB")
    assert len(list((tmp_path / "original").glob("*.safetensors"))) > 2
    checkpoint = convert(tmp_path / "original", tmp_path / "mhc")
    dtypes = {name: value.dtype for name, value in checkpoint.model.named_parameters()}
    assert dtypes["embedding.weight"] == torch.bfloat16
    assert dtypes["layers.0.mlp_connection.fn"] == torch.float32
    export(checkpoint.path, tmp_path / "back")
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in written.items())
    wide = convert(tmp_path / "original", tmp_path / "wide", dtype=torch.float32)
    assert wide.model.embedding.weight.dtype == torch.float32


def test_learned_streams_are_not_left_out_silently(theirs: Models, tmp_path: Path) -> None:
    theirs("qwen3").save_pretrained(tmp_path / "original")
    checkpoint = convert(tmp_path / "original", tmp_path / "mhc")
    with torch.no_grad():
        checkpoint.model.connections()[3].base[6] += 1.0  # H_post of one stream
    save_checkpoint(tmp_path / "tuned", checkpoint.model)
    with pytest.raises(CheckpointError, match=r"streams have learned.*drop_streams"):
        export(tmp_path / "tuned", tmp_path / "back")
    export(tmp_path / "tuned", tmp_path / "back", drop_streams=True)
    assert (tmp_path / "back" / "model.safetensors").exists()
    with pytest.raises(CheckpointError, match="exists"):
        export(tmp_path / "tuned", tmp_path / "back", drop_streams=True)
    result = validate_equivalence(tmp_path / "original", tmp_path / "tuned", 1e-5, max_new_tokens=0)
    assert not result.passed
    assert "DIFFERENT" in str(result)
    assert max(result.sublayers[:4]) < 1e-5 < 1e-3 < min(result.sublayers[4:])


def test_a_scale_that_the_norm_does_not_forgive(theirs: Models) -> None:
    """Without an H_pre that sums to 1, Llama's epsilon shows."""
    model = theirs("llama")
    loose = MHCConfig(stream_embedding_std=0.0)
    with torch.no_grad():
        expected = model(tokens()).logits
        assert error(build(source_of(model), loose)(tokens()), expected) > 1e-4
        exact = equal_at_init("default", 4)
        assert error(build(source_of(model), exact)(tokens()), expected) < 1e-5


def test_presets_that_cannot_be_equal() -> None:
    with pytest.raises(ConfigError, match=r"'plan'.*projection_std"):
        equal_at_init("plan", 4)
    with pytest.raises(ConfigError, match="'nope'"):
        equal_at_init("nope", 4)
    with pytest.raises(ConfigError, match="n_streams is 9"):
        equal_at_init("default", 9)


def test_a_shorter_context(theirs: Models, tmp_path: Path) -> None:
    theirs("gpt2").save_pretrained(tmp_path / "original")
    short = convert(tmp_path / "original", tmp_path / "short", streams=0, max_seq_len=16)
    assert short.model.position_embedding.weight.shape == (16, 32)
    assert validate_equivalence(tmp_path / "original", short.path, max_new_tokens=4).passed
    with pytest.raises(ConfigError, match="1 to 64"):
        convert(tmp_path / "original", tmp_path / "long", max_seq_len=65)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_is_tested(name: str, theirs: Models) -> None:
    assert theirs(name).config.model_type == name


def test_what_no_family_has() -> None:
    with pytest.raises(CheckpointError, match=r"no family.*qwen3, llama, nanochat, gpt2"):
        family_for(ModelConfig(mlp="gelu"))
    assert family_for(ModelConfig()).name == "nanochat"


# What is refused, with file and key


@pytest.fixture
def broken(theirs: Models, tmp_path: Path) -> Path:
    theirs("llama-tied").save_pretrained(tmp_path / "original")
    return tmp_path / "original"


def edit_config(directory: Path, **entries: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "bert"}, r"config\.json: model_type is 'bert'; supported: qwen3, llama"),
        ({"attention_bias": True}, r"config\.json: attention_bias is True; supported.*False"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "scaled.*'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_hidden_layers": 4}, r"safetensors lacks the tensor 'model\.layers\.3\."),
        ({"num_hidden_layers": 2}, r"safetensors has the tensor 'model\.layers\.2\."),
        ({"intermediate_size": 40}, r"safetensors: 'model\.layers\.0\..*\(48, 32\).*\(40, 32\)"),
        ({"num_attention_heads": 5, "head_dim": None}, "d_model 32"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit(
    broken: Path, entries: dict[str, object], message: str, tmp_path: Path
) -> None:
    edit_config(broken, **entries)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        convert(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit(broken: Path, tmp_path: Path) -> None:
    key = "model.layers.1.mlp.up_proj.weight"

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            convert(broken, tmp_path / "out")

    edit_weights(broken, lambda weights: weights.update({"model.extra": torch.zeros(2)}))
    refused(r"model\.safetensors has the tensor 'model\.extra'")
    edit_weights(broken, lambda weights: weights.pop("model.extra"))
    edit_weights(broken, lambda weights: weights.update({"lm_head.weight": torch.zeros(97, 32)}))
    refused(r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight'")
    edit_weights(broken, lambda weights: weights.pop("lm_head.weight"))
    edit_weights(broken, lambda weights: weights.pop(key))
    refused(rf"model\.safetensors lacks the tensor '{key}'")
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:-100])
    refused(r"model\.safetensors is not a readable safetensors file")
    (broken / "model.safetensors").unlink()
    refused("neither model.safetensors nor")
    (broken / "config.json").write_text("{")
    refused(r"config\.json cannot be read")
    (broken / "config.json").unlink()
    refused(r"has no config\.json")
    shutil.rmtree(broken)
    refused("neither a directory, a GGUF file nor a hub name")


def test_a_shard_that_is_missing_or_incomplete(theirs: Models, tmp_path: Path) -> None:
    theirs("qwen3").save_pretrained(tmp_path / "original", max_shard_size="20KB")
    index = tmp_path / "original" / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    key, shard = next((k, s) for k, s in shards.items() if k.endswith("up_proj.weight"))
    file = tmp_path / "original" / shard
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != key}, file)
    with pytest.raises(CheckpointError, match=f"{shard} lacks the tensor '{key}'"):
        read_source(tmp_path / "original")
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{shard} does not exist"):
        read_source(tmp_path / "original")


def test_the_bare_gpt2_of_the_hub(theirs: Models, tmp_path: Path) -> None:
    """OpenAI's file has no prefix, and the causal masks among the weights."""
    model = theirs("gpt2")
    model.save_pretrained(tmp_path / "original")
    bare = {
        key.removeprefix("transformer."): value
        for key, value in load_file(tmp_path / "original" / "model.safetensors").items()
    }
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(3)}
    save_file({**bare, **masks}, tmp_path / "original" / "model.safetensors")
    converted = convert(tmp_path / "original", tmp_path / "plain", streams=0)
    with torch.no_grad():
        assert error(converted.model(tokens()), model(tokens()).logits) < 1e-5
    assert validate_equivalence(tmp_path / "original", converted.path, max_new_tokens=0).passed


def test_different_models_are_not_compared(theirs: Models, tmp_path: Path) -> None:
    for name in ("qwen3", "gpt2"):
        theirs(name).save_pretrained(tmp_path / name)
    other = theirs("llama")
    other.config.vocab_size = 97
    convert(tmp_path / "qwen3", tmp_path / "one", streams=0)
    edit_config(tmp_path / "gpt2", n_layer=2)
    edit_weights(
        tmp_path / "gpt2",
        lambda weights: [weights.pop(key) for key in list(weights) if ".h.2." in key],
    )
    with pytest.raises(CheckpointError, match=r"6 sublayers.*4: not the same model"):
        validate_equivalence(tmp_path / "gpt2", tmp_path / "one")


def test_flops_and_parameters(theirs: Models) -> None:
    model = build(source_of(theirs("qwen3")))
    config, counts = model.config, {n: p.numel() for n, p in model.named_parameters()}
    assert model.count_parameters() == theirs("qwen3").num_parameters() == sum(counts.values())
    matrices = sum(count for name, count in counts.items() if "proj" in name)
    head = counts["embedding.weight"]  # tied: it is multiplied with, too
    attention = 12 * 3 * (4 * 16) * config.max_seq_len
    assert model.estimate_flops() == 6 * (matrices + head) + attention
    untied = build(source_of(theirs("gpt2-untied")))
    counts = {n: p.numel() for n, p in untied.named_parameters()}
    matrices = sum(c for n, c in counts.items() if "proj.weight" in n or n == "head.weight")
    assert untied.estimate_flops() == 6 * matrices + 12 * 3 * 32 * 64


def test_old_configurations_mean_what_they_did() -> None:
    old = {"vocab_size": 97, "n_layers": 2, "n_heads": 4, "n_kv_heads": None, "d_model": 32}
    config = ModelConfig(**old, mlp_ratio=4, max_seq_len=64, softcap=15.0, norm_eps=1e-6)
    keys = set(Decoder(config).state_dict())
    assert keys == {"embedding.weight", "head.weight"} | {
        f"layers.{i}.{part}_proj.weight"
        for i in range(2)
        for part in (
            "attention.q",
            "attention.k",
            "attention.v",
            "attention.o",
            "mlp.up",
            "mlp.down",
        )
    }
