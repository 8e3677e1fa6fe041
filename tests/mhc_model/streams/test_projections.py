"""Every member of the family against its formulas: values, sums and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from variant_cases import EPS, VARIANTS, made, made_head, through_connections, through_formulas

from mhc_model import MHCConfig
from mhc_model.decoder.layers import rms_norm
from mhc_model.streams import HyperConnection, StreamHead, doubly_stochastic_error
from mhc_model.streams.kernels.eager import PART
from mhc_model.streams.projections import kronecker

T, C = 7, 6


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [T, 2 * PART + 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_values_and_gradients_are_those_of_the_formulas(name, tokens):
    """Three sublayers in float32 against float64 under autograd."""
    connections = [made(VARIANTS[name], k) for k in range(3)]
    e, embedding, direction = draw(tokens, C, seed=1), draw(4, C, seed=2), draw(tokens, C, seed=3)
    gates = torch.rand(tokens, 3, generator=torch.Generator().manual_seed(4))
    given = [e, embedding, gates]
    exact = [value.double().requires_grad_() for value in given]
    parameters = [
        {key: value.detach().double().requires_grad_() for key, value in each.named_parameters()}
        for each in connections
    ]
    head = made_head(VARIANTS[name])
    truth_of_head = None
    if head is not None:
        truth_of_head = {
            key: value.detach().double().requires_grad_() for key, value in head.named_parameters()
        }
    config = connections[0].config
    expected = through_formulas(config, parameters, *exact, torch.sin, truth_of_head)
    (expected * direction.double()).sum().backward()
    own = [value.clone().requires_grad_() for value in given]
    found = through_connections(connections, *own, torch.sin, head)
    (found * direction).sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    if head is not None:
        connections, parameters = [*connections, head], [*parameters, truth_of_head]
    pairs = [
        *zip(own, exact, strict=True),
        *(
            (value, truth[key])
            for each, truth in zip(connections, parameters, strict=True)
            for key, value in each.named_parameters()
        ),
    ]
    for value, truth in pairs:
        if truth.grad is None or value.grad is None:  # of gates where H_res is I
            assert config.projection == "identity"
            assert value is own[2]
            continue
        if config.collapse == "mean" and config.single_pass and value is connections[2].scale:
            assert value.grad[0] == 0.0, "nothing reads with the last H_pre"
        error = (value.grad.double() - truth.grad).norm() / truth.grad.norm()
        assert error < 1e-5, f"{name}: shape {tuple(value.shape)}: {error:.1e}"


@pytest.mark.parametrize("name", [name for name in VARIANTS if "free" not in name])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_h_res_is_doubly_stochastic(name, spread):
    connection = made(VARIANTS[name], 1)
    with torch.no_grad():
        connection.base.mul_(spread / 0.4)
    matrix = connection.enter(draw(5, T, 4, C, seed=5))[1].res
    assert matrix.shape == (5, T, 4, 4)
    assert matrix.min() >= 0.0
    assert max(float(error.max()) for error in doubly_stochastic_error(matrix)) < 1e-6


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("n", [2, 4])
def test_one_sublayer_by_itself(name, n):
    """`forward` and `leave` do what `cross` does."""
    connection, x = made(VARIANTS[name], 2, n), draw(2, T, n, C, seed=6)
    gate = torch.tensor([0.0, 0.7])
    u, found = connection.enter(x)
    expected = connection.leave(x, torch.sin(u), found, gate)
    torch.testing.assert_close(connection(x, torch.sin, gate), expected, atol=1e-6, rtol=0)
    pre, post = found.pre, found.post
    assert pre.shape == post.shape == (2, T, n)
    kept = x[0] + post[0, :, :, None] * torch.sin(u)[0, :, None]
    torch.testing.assert_close(expected[0], kept, atol=1e-6, rtol=0)


def test_a_kronecker_product_has_a_factor_for_each_halving():
    """The first factor swaps the halves of the streams, the last one neighbours."""
    swapped = kronecker(torch.tensor([[-40.0, 40.0], [40.0, -40.0]]))
    x = torch.arange(4.0)
    assert [(matrix.mT @ x).round().tolist() for matrix in swapped] == [[2, 3, 0, 1], [1, 0, 3, 2]]
    assert kronecker(torch.full((2, 3), 2.0)).shape == (2, 8, 8)


def test_where_every_projection_starts():
    starts = {
        name: made_at_start(projection=name).initial_res()
        for name in ("limit", "permutations", "kronecker", "identity", "free")
    }
    stay = torch.sigmoid(torch.tensor(2.0))
    assert starts["kronecker"][0, 0] == pytest.approx(float(stay**2))
    assert torch.equal(starts["free"], torch.eye(4))
    free = made_at_start(projection="free", stream_embedding_std=0.0)
    _, found = free.enter(draw(3, 4, C, seed=8))
    _, default = made_at_start().enter(draw(3, 4, C, seed=8))
    torch.testing.assert_close(found.pre, default.pre)
    torch.testing.assert_close(found.post, default.post)


def made_at_start(**fields) -> HyperConnection:
    return HyperConnection(MHCConfig(**fields), C, 0, 1e-6)


def test_the_learned_collapse_is_deepseek_v4s():
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    head = made_head({"collapse": "learned"})
    config = SimpleNamespace(hc_mult=4, hc_eps=0.0, rms_norm_eps=EPS, hidden_size=C)
    theirs = modeling.DeepseekV4HyperHead(config)
    with torch.no_grad():
        theirs.hc_fn.copy_(head.fn.T)
        theirs.hc_base.copy_(head.base)
        theirs.hc_scale.copy_(head.scale)
        x = draw(2, T, 4, C, seed=9)
        torch.testing.assert_close(head(x), theirs(x), atol=1e-6, rtol=1e-6)


def test_the_learned_collapse_starts_as_the_mean():
    head, x = StreamHead(MHCConfig(collapse="learned"), C, EPS), draw(2, T, 4, C, seed=9)
    torch.testing.assert_close(head(x), x.mean(dim=2), atol=1e-6, rtol=1e-6)


def test_single_pass_hands_h_pre_to_the_next_sublayer():
    """The first one reads stream 0; the next with what the first one made of the same streams."""
    fields = {"single_pass": True}
    first, second = made(fields, 0), made(fields, 1)
    x, gate = draw(T, 4, C, seed=1), torch.ones(T)
    u, found = first.enter(x)
    torch.testing.assert_close(u, rms_norm(x[:, 0], EPS))
    new, u, _ = second.cross(x, u, found, gate)
    handed = torch.einsum("ti,tic->tc", made({}, 0).enter(x)[1].pre, new)
    torch.testing.assert_close(u, rms_norm(handed, EPS), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(second.enter(new, found.pre)[0], u)
    starts = HyperConnection(MHCConfig(**fields), C, 1, EPS).base
    assert starts[:4].argmax() == 2, "it is made for sublayer 2"


@pytest.mark.parametrize(
    "name", ["identity", "kronecker", "static_learned_collapse", "single_pass_free"]
)
def test_compiles_without_a_graph_break(name):
    torch.compiler.reset()
    connections, head = [made(VARIANTS[name], k) for k in range(2)], made_head(VARIANTS[name])
    gates = torch.rand(T, 2)
    given = (draw(T, C, seed=1), draw(4, C, seed=2), gates)

    def run(*arguments):
        return through_connections(connections, *arguments, torch.sin, head)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), run(*given), atol=1e-6, rtol=1e-6)


def test_identity_has_nothing_of_h_res():
    connection = HyperConnection(MHCConfig(projection="identity"), C, 0, EPS)
    shapes = {name: tuple(value.shape) for name, value in connection.named_parameters()}
    assert shapes == {"fn": (4 * C, 8), "base": (8,), "scale": (2,)}
    assert torch.equal(connection.get_connection_matrix(), torch.eye(4))
    assert torch.equal(connection.initial_res(), torch.eye(4))


def test_static_has_biases_only_and_is_the_same_for_every_token():
    connection = made({"dynamic": False}, 0)
    assert [name for name, _ in connection.named_parameters()] == ["base"]
    found = connection.enter(draw(2, T, 4, C, seed=7))[1]
    for value in found:
        assert torch.equal(value, value[:1, :1].expand_as(value))
    assert torch.equal(found.res[0, 0], connection.get_connection_matrix())
    dynamic = made({}, 0).enter(draw(2, T, 4, C, seed=7))[1]
    assert not torch.equal(dynamic.pre[0, 0], dynamic.pre[0, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", VARIANTS)
def test_streams_keep_their_dtype_and_coefficients_are_float32(name, dtype):
    connections = [made(VARIANTS[name], k) for k in range(2)]
    gates = torch.full((T, 2), 0.5)
    given = (draw(T, C, seed=1).to(dtype), draw(4, C, seed=2), gates, torch.sin)
    mean = through_connections(connections, *given, made_head(VARIANTS[name]))
    assert mean.dtype == dtype
    mean.float().sum().backward()
    assert connections[0].base.grad.isfinite().all()
    assert all(
        value.dtype == torch.float32
        for value in connections[0].enter(draw(T, 4, C, seed=3).to(dtype))[1]
    )
