"""Parameter groups, updates and the state that resuming needs."""

import pytest
import torch
from torch import nn

from mhc_model import CheckpointError, Decoder, MHCConfig, MHCError, ModelConfig
from train.config import OptimizerConfig
from train.loop import Optimizers, group_parameters

SIZES = {"vocab_size": 40, "n_layers": 2, "n_heads": 2, "d_model": 16, "max_seq_len": 16}


def make_model(mhc: bool = True) -> Decoder:
    return Decoder(ModelConfig(**SIZES, mhc=MHCConfig() if mhc else None))


def train(model: Decoder, optimizers: Optimizers, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        tokens = torch.randint(40, (4, 16), generator=generator)
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizers.step(1.0)


@pytest.mark.parametrize("mhc", [False, True])
def test_every_parameter_is_in_exactly_one_group(mhc):
    model = make_model(mhc)
    groups = group_parameters(model)
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert set(groups) == {"hidden", "embedding", "head"} | ({"mhc"} if mhc else set())
    assert len(groups["hidden"]) == 2 * 6
    assert all(parameter.ndim == 2 for parameter in groups["hidden"].values())


def test_muon_has_hidden_matrices_only():
    model = make_model()
    adamw, muon = Optimizers(model, OptimizerConfig())._all
    in_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    assert in_muon == {id(p) for p in group_parameters(model)["hidden"].values()}
    assert all(group["weight_decay"] == 0.0 for group in adamw.param_groups)
    assert len(Optimizers(model, OptimizerConfig(hidden="adamw"))._all) == 1


def test_an_unknown_parameter_needs_a_decision():
    model = make_model()
    model.extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="'extra'"):
        group_parameters(model)


@pytest.mark.parametrize("hidden", ["muon", "adamw"])
def test_weight_decay_reaches_hidden_matrices_only(hidden):
    decayed, plain = (make_model() for _ in range(2))
    for model, decay in ((decayed, 0.5), (plain, 0.0)):
        train(model, Optimizers(model, OptimizerConfig(hidden=hidden, weight_decay=decay)), 1)
    differing = {
        name
        for (name, a), b in zip(decayed.named_parameters(), plain.parameters(), strict=True)
        if not a.equal(b)
    }
    hidden_names = set(group_parameters(plain)["hidden"])
    assert differing
    assert differing <= hidden_names


def test_clipping_bounds_the_gradient_and_reports_its_norm():
    model = make_model()
    optimizers = Optimizers(model, OptimizerConfig(gradient_clip=1.0))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    expected = 10.0 * model.count_parameters() ** 0.5
    assert optimizers.step(0.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_no_number_changes_no_weight(bad, clip):
    model = make_model()
    optimizers = Optimizers(model, OptimizerConfig(gradient_clip=clip))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.head.weight.grad[0, 0] = bad
    with pytest.raises(MHCError, match=f"norm of the gradient is {bad}"):
        optimizers.step(1.0)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("hidden", ["muon", "adamw"])
def test_state_survives_a_round_trip(hidden):
    config = OptimizerConfig(hidden=hidden)
    straight = make_model()
    optimizers = Optimizers(straight, config)
    train(straight, optimizers, 3)
    resumed = make_model()
    resumed.load_state_dict(straight.state_dict())
    fresh = Optimizers(resumed, config)
    fresh.load_state_tensors(
        {name: value.clone() for name, value in optimizers.state_tensors().items()}
    )
    train(straight, optimizers, 3, seed=1)
    train(resumed, fresh, 3, seed=1)
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert a.equal(b), name


def test_foreign_state_is_refused():
    model = make_model()
    optimizers = Optimizers(model, OptimizerConfig())
    train(model, optimizers, 1)
    state = optimizers.state_tensors()
    missing = {k: v for k, v in state.items() if not k.startswith("gate_logits/")}
    with pytest.raises(CheckpointError, match="'gate_logits'"):
        Optimizers(model, OptimizerConfig()).load_state_tensors(missing)
    state["head.weight/exp_avg"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError, match=r"\(2, 2\)"):
        Optimizers(model, OptimizerConfig()).load_state_tensors(state)
