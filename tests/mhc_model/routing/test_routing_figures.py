"""The routing figures against the same written as loops; those of a prompt, from the formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mhc_model import EngineError, GateError
from mhc_model.decoder import watching
from mhc_model.routing import Routing, prompt_routing, watch_routing
from mhc_model.streams import gated, sinkhorn_knopp


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


def coefficients_of(connection, x):
    """H_pre, H_post and H_res of streams (t, n, c), as the paper writes them."""
    n = x.shape[1]
    flat = x.flatten(1)
    normed = flat * (flat.square().mean(dim=-1, keepdim=True) + connection.norm_eps).rsqrt()
    projected = normed @ connection.fn
    pre, post, res = (
        connection.scale[k] * projected[:, columns] + connection.base[columns]
        for k, columns in enumerate(
            (slice(0, n), slice(n, 2 * n), slice(2 * n, 2 * n + n * n)),
        )
    )
    matrices = sinkhorn_knopp(res.unflatten(-1, (n, n)) / connection.config.tau, exact=True)
    return torch.sigmoid(pre), 2 * torch.sigmoid(post), matrices


@torch.no_grad()
@pytest.mark.parametrize("gates", [None, 0.25, [0.0, 1.0, 0.5]])
def test_the_routing_of_a_prompt_is_that_of_the_formulas(model, gates):
    tokens = draw(3)[0][0].tolist()
    found = prompt_routing(model, tokens, gates)
    used = model.gate_rows([gates])[0]
    torch.testing.assert_close(found.gates, used)
    streams = []
    with watching(model, lambda k, x, out, gate: streams.append(x[0])):
        model(torch.tensor([tokens]), used[None])
    product = torch.eye(4).expand(len(tokens), 4, 4)
    assert len(found.sublayers) == len(found.composite_gains) == 6
    for k, record in enumerate(found.sublayers):
        pre, post, res = coefficients_of(model.connections()[k], streams[k])
        torch.testing.assert_close(record.pre, pre, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(record.post, post, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(record.res, res, atol=1e-4, rtol=1e-4)
        mixing = (1 - used[k]) * torch.eye(4) + used[k] * res
        distance = torch.linalg.matrix_norm(mixing - torch.eye(4))
        torch.testing.assert_close(record.identity_distance, distance, atol=1e-4, rtol=1e-4)
        pairs = [(i, j) for i in range(4) for j in range(i)]
        x = streams[k]
        cosines = [F.cosine_similarity(x[:, i], x[:, j], dim=-1) for i, j in pairs]
        torch.testing.assert_close(record.similarity, torch.stack(cosines).mean(dim=0))
        assert record.row_error.shape == record.column_error.shape == (len(tokens),)
        assert float(record.row_error.max()) < 1e-4
        product = product @ mixing
        gain = max(product.sum(-1).max().item(), product.sum(-2).max().item(), 1.0)
        assert found.composite_gains[k] == pytest.approx(gain, abs=1e-4)
    assert model.watch is None


def test_the_routing_of_a_prompt_refuses_what_cannot_run(tiny_model, model):
    for tokens, gates, error in (
        ([1], 1.5, GateError),
        ([1], [0.5, 0.5], GateError),
        ([], None, EngineError),
        ([61], None, EngineError),
        ([-1], None, EngineError),
        ([1] * 49, None, EngineError),
    ):
        with pytest.raises(error):
            prompt_routing(model, tokens, gates)
        assert model.watch is None
    with pytest.raises(GateError, match="plain"):
        prompt_routing(tiny_model(plain=True), [1])
