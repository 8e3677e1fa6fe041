"""The routing figures against the same written as loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mhc_model import GateError
from mhc_model.connections import gated
from mhc_model.routing import Routing, watch_routing, watching


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


def draw(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(61, (2, 9), generator=generator), torch.rand(2, 6, generator=generator)


@torch.no_grad()
def test_figures_are_means_and_extremes_over_all_tokens_of_all_passes(model):
    seen: dict[int, list] = {k: [] for k in range(6)}
    with watching(model, lambda k, x, out, gate: seen[k].append((x, out, gate))):
        for seed in (0, 1):
            model(*draw(seed))
    with watch_routing(model) as routing:
        for seed in (0, 1):
            model(*draw(seed))
    products = [torch.eye(4).expand(2, 9, 4, 4)] * 2
    for k, record in enumerate(routing.sublayers()):
        res = torch.cat([out.res for _, out, _ in seen[k]])
        gate = torch.cat([gate for _, _, gate in seen[k]])
        x = torch.cat([x for x, _, _ in seen[k]])
        torch.testing.assert_close(record.res, res.mean(dim=(0, 1)))
        torch.testing.assert_close(
            record.pre, torch.cat([out.pre for _, out, _ in seen[k]]).mean(dim=(0, 1))
        )
        torch.testing.assert_close(record.gate, gate.mean())
        mixing = gated(res, gate)
        distance = torch.linalg.matrix_norm(mixing - torch.eye(4)).mean()
        torch.testing.assert_close(record.identity_distance, distance)
        pairs = [(i, j) for i in range(4) for j in range(i)]
        cosines = [F.cosine_similarity(x[:, :, i], x[:, :, j], dim=-1).mean() for i, j in pairs]
        torch.testing.assert_close(record.similarity, torch.stack(cosines).mean())
        start = model.connections()[k].initial_res()
        torch.testing.assert_close(record.drift, (res - start).abs().max())
        products = [p @ m for p, m in zip(products, mixing.split(2), strict=True)]
        both = torch.cat(products)
        gain = max(both.sum(-1).max().item(), both.sum(-2).max().item(), 1.0)
        assert routing.composite_gains[k] == pytest.approx(gain, abs=1e-5)
    summary = routing.summary()
    assert summary["composite_gain"] < 1.01
    assert len(summary["identity_distance"]) == len(summary["composite_gain_by_depth"]) == 6


@torch.no_grad()
def test_watching_changes_nothing_and_ends(model):
    tokens, gates = draw(0)
    expected = model(tokens, gates)
    with watch_routing(model):
        assert torch.equal(model(tokens, gates), expected)
    assert model.watch is None
    with pytest.raises(ZeroDivisionError), watch_routing(model):
        raise ZeroDivisionError
    assert model.watch is None


def test_refuses_what_has_no_routing(tiny_model, model):
    with pytest.raises(GateError, match="plain"), watch_routing(tiny_model(plain=True)):
        pass
    with watch_routing(model) as routing, pytest.raises(GateError, match="no forward pass"):
        routing.summary()


@torch.no_grad()
def test_figures_are_float32_under_autocast(model):
    tokens, gates = draw(0)
    seen = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with watching(model, lambda k, x, out, gate: seen.append((k, x, out, gate))):
            model(tokens, gates)
        inside, outside = Routing(model), Routing(model)
        for record in seen:
            inside(*record)
    for record in seen:
        outside(*record)
    for one, other in zip(inside.sublayers(), outside.sublayers(), strict=True):
        for found, expected in zip(one, other, strict=True):
            assert torch.equal(found, expected)
