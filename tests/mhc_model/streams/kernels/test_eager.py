"""The hand-written forward and backward passes against autograd of the formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc_model import Decoder, MHCConfig, ModelConfig, sinkhorn_knopp
from mhc_model.routing import watch_routing
from mhc_model.streams import HyperConnection
from mhc_model.streams.projections import project

B, T, C = 2, 5, 12
EPS = 1e-6
PROJECTIONS = ["limit", "iterations", "permutations"]


def make(projection: str = "limit", n: int = 4, width: int = C, seed: int = 0) -> HyperConnection:
    """Every parameter random, in float64."""
    config = MHCConfig(n_streams=n, projection=projection, tau=0.8)
    connection = HyperConnection(config, width, sublayer=1, norm_eps=EPS).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        connection.fn.normal_(0.0, width**-0.5, generator=generator)
        connection.base.normal_(0.0, 1.0, generator=generator)
        connection.scale.copy_(torch.tensor([0.7, 1.3, 0.9]))
    return connection


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def formulas(connection: HyperConnection, x, gate, sublayer):
    """One sublayer of x (b, t, n, c) in plain operations that autograd records."""
    n, config = x.shape[2], connection.config
    flat = x.flatten(2)
    flat = flat / (flat.square().mean(-1, keepdim=True) + EPS).sqrt()
    pre, post, res = (flat @ connection.fn).split([n, n, config.n_res_logits], dim=-1)
    b_pre, b_post, b_res = connection.base.split([n, n, config.n_res_logits])
    s_pre, s_post, s_res = connection.scale
    pre, post = torch.sigmoid(s_pre * pre + b_pre), 2 * torch.sigmoid(s_post * post + b_post)
    if config.projection == "permutations":
        res = project(s_res * res + b_res, config)
    else:
        logits = (s_res * res + b_res).unflatten(-1, (n, n)) / config.tau
        for _ in range(2000 if config.projection == "limit" else config.sinkhorn_iters):
            logits = logits - logits.logsumexp(dim=-1, keepdim=True)
            logits = logits - logits.logsumexp(dim=-2, keepdim=True)
        res = logits.exp()
    gate = gate[:, None, None, None]
    mixing = (1 - gate) * torch.eye(n, dtype=x.dtype) + gate * res
    u = torch.einsum("btn,btnc->btc", pre, x)
    y = sublayer(u / (u.square().mean(-1, keepdim=True) + EPS).sqrt())
    return torch.einsum("btnm,btnc->btmc", mixing, x) + post[..., None] * y[:, :, None]


def two_sublayers(connection: HyperConnection, e, emb, gate, w, how: str):
    """e (b, t, c) through two sublayers with matrices w, to the mean of the streams."""
    if how == "formulas":
        x = e[:, :, None] + emb
        for matrix in w:
            x = formulas(connection, x, gate, lambda u, matrix=matrix: torch.tanh(u @ matrix))
        return x.mean(dim=2)
    if how == "layer":
        x = e[:, :, None] + emb
        for matrix in w:
            x = connection(x, lambda u, matrix=matrix: torch.tanh(u @ matrix), gate)
        return x.mean(dim=2)
    x, u, coefficients = connection.start(e, emb)
    y = torch.tanh(u @ w[0])
    x, u, coefficients = connection.cross(x, y, coefficients, gate)
    return connection.collapse(x, torch.tanh(u @ w[1]), coefficients, gate)


def gradients(connection, how: str, dtype=torch.float64, streams=None, tokens: int = T):
    """Output and gradients of two sublayers, all in float64."""
    width, n = connection.fn.shape[0] // connection.config.n_streams, connection.config.n_streams
    connection = connection.to(dtype)
    connection.zero_grad()
    e, emb = draw(B, tokens, width), draw(n, width, seed=1)
    w = [draw(width, width, seed=seed) / width**0.5 for seed in (2, 3)]
    inputs = [value.to(dtype).requires_grad_() for value in (e, emb, torch.tensor([0.3, 1.0]), *w)]
    e, emb, gate, *w = inputs
    out = two_sublayers(connection, e.to(streams or dtype), emb, gate, w, how)
    (out.double() * draw(B, tokens, width, seed=4)).sum().backward()
    found = [value.grad for value in (*inputs, *connection.parameters())]
    return [value.detach().double() for value in (out, *found)]


def relative_error(found, expected) -> float:
    errors = [(f - e).norm() / e.norm() for f, e in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()


@pytest.mark.parametrize("how", ["layer", "crossing"])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_float64_equals_autograd_of_the_formulas(projection, n, how):
    connection = make(projection, n)
    expected = gradients(connection, "formulas")
    assert relative_error(gradients(connection, how), expected) < 1e-9


@pytest.mark.parametrize("how", ["layer", "crossing"])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_float32_is_exact_to_1e5(projection, how):
    connection = make(projection, width=32)
    expected = gradients(connection, "formulas", tokens=20)
    found = gradients(connection, how, torch.float32, tokens=20)
    # With this seed the gate's gradient under permutations is a sum that nearly cancels.
    assert relative_error(found, expected) < (5e-5 if projection == "permutations" else 1e-5)


@pytest.mark.parametrize("how", ["expanded", "sliced", "transposed"])
def test_streams_need_not_be_contiguous(how):
    connection, gate = make(), torch.tensor([0.3, 1.0]).double()
    x = {
        "expanded": draw(B, T, 1, C).expand(B, T, 4, C),
        "sliced": draw(B, T, 4, C + 3)[..., :C],
        "transposed": draw(B, T, C, 4).mT,
    }[how].requires_grad_()
    assert not x.is_contiguous()
    expected = formulas(connection, x, gate, torch.tanh)
    found = connection(x, torch.tanh, gate)
    torch.testing.assert_close(found, expected)
    weights = draw(B, T, 4, C, seed=3)
    (one,) = torch.autograd.grad((found * weights).sum(), x)
    (other,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(one, other)


def test_streams_may_be_more_precise_than_the_parameters():
    connection = make().float()
    u, _ = connection.enter(draw(B, T, 4, C))
    torch.testing.assert_close(u.float(), connection.enter(draw(B, T, 4, C).float())[0])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_goes_through_too(shape):
    model = Decoder(ModelConfig(vocab_size=9, n_layers=2, n_heads=2, d_model=8, mhc=MHCConfig()))
    with watch_routing(model):
        out = model(torch.zeros(shape, dtype=torch.int64))
    assert out.shape == (*shape, 9)
    out.sum().backward()


def test_many_tokens_go_through_in_parts():
    """More than one part of the backward pass, and a last one that is not full."""
    connection = make("iterations", width=8)
    expected = gradients(connection, "formulas", tokens=300)
    assert relative_error(gradients(connection, "crossing", tokens=300), expected) < 1e-9


def test_bfloat16_streams_keep_their_precision():
    connection = make(width=32).float()

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return value.to(torch.bfloat16)

    x, y = rounded(draw(B, T, 4, 32)), rounded(draw(B, T, 32, seed=1))
    u, coefficients = connection.enter(x)
    new = connection.leave(x, y, coefficients, torch.tensor([0.3, 1.0]))
    assert u.dtype == new.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in coefficients)
    exact_u, exact = connection.enter(x.float())
    for found, wanted in zip(coefficients, exact, strict=True):
        torch.testing.assert_close(found, wanted)
    exact_new = connection.leave(x.float(), y.float(), exact, torch.tensor([0.3, 1.0]))
    assert relative_error([u.double(), new.double()], [exact_u.double(), exact_new.double()]) < 5e-3
    # Gradients of one sublayer, whose inputs are the same rounded numbers.
    found, wanted = [], []
    for dtype, into in ((torch.bfloat16, found), (torch.float32, wanted)):
        connection.zero_grad()
        a, b = (v.detach().to(dtype).requires_grad_() for v in (x, y))
        g = torch.tensor([0.3, 1.0]).requires_grad_()
        u, coefficients = connection.enter(a)
        out = connection.leave(a, b, coefficients, g)
        ((out.float() * draw(B, T, 4, 32, seed=5)).sum() + u.float().square().sum()).backward()
        into += [v.grad.double() for v in (a, b, g, *connection.parameters())]
    assert relative_error(found, wanted) < 1e-2


def test_gradcheck():
    connection = make()
    e, emb, gate = draw(B, 2, C), draw(4, C, seed=1), torch.tensor([0.3, 1.0]).double()
    w = [draw(C, C, seed=seed) / C**0.5 for seed in (2, 3)]
    inputs = [value.requires_grad_() for value in (e, emb, gate, *w)]
    assert torch.autograd.gradcheck(
        lambda e, emb, gate, *w: two_sublayers(connection, e, emb, gate, w, "crossing"), inputs
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), order=st.permutations(range(4)))
def test_permuting_the_streams_permutes_the_outputs(seed, order):
    """Streams are interchangeable: only the parameters tell them apart."""
    connection, moved = make(seed=seed), make(seed=seed)
    order = list(order)
    columns = [*order, *(4 + i for i in order), *(8 + 4 * i + j for i in order for j in order)]
    with torch.no_grad():
        moved.fn.copy_(connection.fn.unflatten(0, (4, C))[order][:, :, columns].flatten(0, 1))
        moved.base.copy_(connection.base[columns])
    x, gate = draw(B, T, 4, C, seed=seed), torch.rand(B).double()
    expected = connection(x, torch.tanh, gate)[:, :, order]
    torch.testing.assert_close(moved(x[:, :, order], torch.tanh, gate), expected)


def test_saves_the_streams_once_and_little_else():
    """Bytes kept for the backward pass by a sublayer between two others."""
    connection = make(width=256).float()
    x, y = draw(1, 64, 4, 256).float(), draw(1, 64, 256).float()
    x.requires_grad_()
    y.requires_grad_()
    _, coefficients = connection.enter(x)
    saved: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        connection.cross(x, y, coefficients, torch.ones(1))
    for known in (x, y, *connection.parameters()):
        saved.pop(known.untyped_storage().data_ptr(), None)
    # Per token: the new streams (4 c), the input of the norm (c) and what is made of it (c), and
    # coefficients, of which there are fewer than 200 numbers.
    assert sum(saved.values()) <= 64 * (6 * 256 + 200) * 4


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_without_a_graph_break(dynamic):
    # One layer has every kind of boundary: into the streams, across them, and out.
    model = Decoder(ModelConfig(vocab_size=32, n_layers=1, n_heads=2, d_model=16, mhc=MHCConfig()))
    tokens, gates = torch.randint(32, (2, 9)), torch.rand(2, 2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        out = run(tokens, gates)
        out.square().sum().backward()
        results.append(
            [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_few_operations_a_sublayer():
    """All dispatched operations of one boundary, views included."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    connection = make().float()
    x, y, gate = draw(10, 4, C).float(), draw(10, C).float(), torch.rand(10)
    _, coefficients = connection.enter(x)
    with Counter() as counter:
        connection.cross(x, y, coefficients, gate)
    assert counter.count <= 37, "one more than by default: tau is not 1"
    inputs = (draw(2, 5, 4, C).float(), torch.nn.Identity(), torch.rand(2))
    with Counter() as counter:
        connection(*inputs)
    assert counter.count <= 41


def test_the_limit_is_what_the_layer_uses():
    connection = make().float()
    _, coefficients = connection.enter(draw(B, 1000, 4, C).float())
    assert (coefficients.res.sum(-1) - 1).abs().max() < 1e-6
    assert (coefficients.res.sum(-2) - 1).abs().max() < 1e-6
    torch.testing.assert_close(
        connection.get_connection_matrix(),
        sinkhorn_knopp(connection.base[8:].unflatten(0, (4, 4)), tau=0.8),
    )
