"""Every member of the family of hyper-connections as a whole model: caches, gates, files."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from variant_cases import VARIANTS

from mhc_model import Engine, Request, SamplingParams, load_checkpoint, save_checkpoint
from mhc_model.checkpoint.validate import validate_model
from mhc_model.decoder import Decoder, KVCache
from mhc_model.errors import GateError
from mhc_model.routing import prompt_routing, watch_routing
from mhc_model.streams import connections

WITHOUT = ["identity", "static_identity", "still_learned_collapse"]
WITH_GATES = [name for name in VARIANTS if name not in WITHOUT]


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tiny_model) -> Decoder:
    return tiny_model(mhc={"n_streams": 4, **VARIANTS[request.param]})


def tokens_of(model: Decoder, b: int = 3, t: int = 12) -> torch.Tensor:
    return torch.randint(
        model.config.vocab_size, (b, t), generator=torch.Generator().manual_seed(1)
    )


def gates_of(model: Decoder, b: int = 3) -> torch.Tensor | None:
    if model.config.gateless is not None:
        return None
    return torch.rand(b, model.config.n_gates, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_cached_equals_uncached(model):
    tokens, gates = tokens_of(model), gates_of(model)
    whole = model(tokens, gates)
    cache = KVCache.allocate(model.config, 3)
    parts = [model(part, gates, cache) for part in tokens.split([5, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_mixed_batch_equals_lone_runs(model):
    """Also in the engine, which caches and batches."""
    tokens, gates = tokens_of(model), gates_of(model)
    mixed = model(tokens, gates)
    rows = [None] * 3 if gates is None else list(gates)
    for row, gate, logits in zip(tokens, rows, mixed, strict=True):
        alone = model(row[None], None if gate is None else gate[None])[0]
        torch.testing.assert_close(alone, logits, atol=1e-4, rtol=1e-4)
    sampling = SamplingParams(max_tokens=8, logprobs=True)
    requests = [
        Request(row.tolist(), gate, sampling) for row, gate in zip(tokens, rows, strict=True)
    ]
    together = Engine(model, max_batch=4).generate(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = Engine(model, max_batch=1).generate([request])
        assert alone.tokens == answer.tokens
        assert alone.logprobs == pytest.approx(answer.logprobs, abs=1e-4)


@torch.no_grad()
def test_saved_and_loaded_here_and_in_transformers(model, tmp_path, private_module_cache):
    tokens, gates = tokens_of(model), gates_of(model)
    save_checkpoint(tmp_path / "model", model)
    loaded = load_checkpoint(tmp_path / "model").model
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens, gates), model(tokens, gates))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    found = theirs.eval()(tokens, gates=gates).logits
    torch.testing.assert_close(found, model(tokens, gates), atol=1e-5, rtol=1e-5)
    assert all(check.passed for check in validate_model(tmp_path / "model"))
    half = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", trust_remote_code=True, dtype=torch.bfloat16
    )
    halves = load_checkpoint(tmp_path / "model", dtype=torch.bfloat16).model
    for name, parameter in (*half.model.named_parameters(), *halves.named_parameters()):
        precise = "connection." in name or name == "gate_logits"
        assert parameter.dtype == (torch.float32 if precise else torch.bfloat16), name


@torch.no_grad()
def test_routing_figures(model):
    with watch_routing(model) as routing:
        model(tokens_of(model), gates_of(model))
    figures = routing.summary()
    if model.config.mhc.constrained:
        assert figures["composite_gain"] == pytest.approx(1.0, abs=1e-4)
        assert max(figures["row_error"], figures["column_error"]) < 1e-5
    else:
        assert figures["composite_gain"] > 2.0, "what the constraint is for"
    still = not model.config.mhc.mixes
    assert (max(figures["identity_distance"]) == 0.0) is still
    assert len(prompt_routing(model, [1, 2, 3]).sublayers) == 6


def test_every_parameter_has_a_gradient(model):
    """Data-parallel training waits for each of them."""
    train = copy.deepcopy(model).train()
    train(tokens_of(train)).square().sum().backward()
    for name, parameter in train.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_parameters_and_cost_are_counted(model, tiny_config):
    default, own = Decoder(tiny_config()), model
    counted = sum(parameter.numel() for parameter in own.parameters())
    assert own.count_parameters() == counted
    mhc = model.config.mhc
    less = not mhc.dynamic or mhc.projection in ("identity", "kronecker")
    assert (own.estimate_flops() < default.estimate_flops()) is less


@torch.no_grad()
@pytest.mark.parametrize("name", WITHOUT)
def test_without_mixing_gates_are_refused_in_words(tiny_model, name):
    model = tiny_model(mhc=VARIANTS[name])
    words = r"without mixing \(mhc\.projection: identity; mhc\.gates: accept would take gates\)"
    tokens = tokens_of(model)
    with pytest.raises(GateError, match=words):
        model(tokens, torch.zeros(3, 6))
    with pytest.raises(GateError, match=words):
        model.gate_rows_or_none([0.5])
    with pytest.raises(GateError, match=words):
        model.learned_gates()
    with pytest.raises(GateError, match=words):
        model.set_gate(0.5)
    with pytest.raises(GateError, match=words):
        Engine(model, max_batch=1).generate([Request([1, 2], 0.5, SamplingParams(max_tokens=1))])
    assert model.hidden_after(tokens, 1).shape == (3, 12, 32)


@torch.no_grad()
def test_accepted_gates_change_nothing(tiny_model):
    model = tiny_model(mhc=VARIANTS["accepting"])
    refusing = tiny_model(mhc=VARIANTS["identity"])
    tokens = tokens_of(model)
    expected = refusing(tokens)
    for gates in (None, torch.zeros(3, 6), torch.ones(3, 6), torch.rand(3, 12, 6)):
        assert torch.equal(model(tokens, gates), expected)
    assert "gate_logits" not in dict(model.named_parameters())
    assert torch.equal(model.learned_gates(), torch.full((6,), 0.9))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in WITH_GATES if name != "accepting"])
def test_gates_blend_h_res_with_the_identity(tiny_model, monkeypatch, name):
    """g = 0 is a model that mixes nothing, to the last bit; g = 1 is another."""
    model = tiny_model(mhc=VARIANTS[name])
    tokens = tokens_of(model)
    closed, opened = (model(tokens, torch.full((3, 6), gate)) for gate in (0.0, 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(connections, "project", lambda logits, _: torch.eye(4).expand(36, 4, 4))
        assert torch.equal(model(tokens, torch.full((3, 6), 0.6)), closed)
    assert (opened - closed).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["default", "learned_collapse", "single_pass_to_the_end"])
def test_a_learned_collapse_makes_the_last_gate_count(tiny_model, name):
    model = tiny_model(mhc=VARIANTS[name])
    model(tokens_of(model)).square().sum().backward()
    last = float(model.gate_logits.grad[-1].abs() / model.gate_logits.grad.abs().max())
    assert last < 1e-5 if name == "default" else last > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_equal_streams_start_as_the_plain_model(name, tiny_config):
    """With `stream_embedding_std: 0`, as a conversion has it."""
    own = Decoder(tiny_config(mhc={**VARIANTS[name], "stream_embedding_std": 0.0}))
    plain = Decoder(tiny_config(plain=True))
    own.load_state_dict(own.state_dict() | plain.state_dict())
    tokens = tokens_of(own)
    for gates in (None, gates_of(own)):
        torch.testing.assert_close(own(tokens, gates), plain(tokens), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_before_is_the_same_model():
    """Written before the family had switches; its logits lie beside it."""
    directory = Path(__file__).parents[1] / "data" / "checkpoint_before_variants"
    loaded = load_checkpoint(directory)
    assert loaded.model.config.mhc.projection == "limit"
    expected = json.loads(directory.with_suffix(".json").read_text())
    with torch.no_grad():
        for name, gates in (("learned", None), ("half", torch.full((1, 4), 0.5))):
            logits = loaded.model(torch.tensor(expected["tokens"]), gates)
            torch.testing.assert_close(logits, torch.tensor(expected[name]), atol=1e-6, rtol=1e-6)
    assert expected["sha256"] == {
        name: hashlib.sha256(parameter.detach().numpy().tobytes()).hexdigest()
        for name, parameter in loaded.model.named_parameters()
    }
