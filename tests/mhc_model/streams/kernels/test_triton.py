"""The Triton kernels in Triton's interpreter, against the formulas in float64 and autograd."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhc_model import Decoder, MHCConfig, ModelConfig
from mhc_model.errors import ConfigError
from mhc_model.routing import watch_routing
from mhc_model.streams import doubly_stochastic_error, kernels, sinkhorn_knopp
from mhc_model.streams.kernels import library

# Triton looks at this when it is first imported, and torch may import it for other tests: these
# run in a process of their own, which `test_in_the_interpreter` starts.
IN_INTERPRETER = os.environ.get("MHC_TEST_TRITON") == "1"
EPS, TAU = 1e-6, 0.8

interpreted = pytest.mark.skipif(
    not IN_INTERPRETER, reason="runs in the interpreter's process, see test_in_the_interpreter"
)
Operation = Callable[..., tuple[Tensor, ...]]


@pytest.mark.skipif(IN_INTERPRETER, reason="starts the process that this is")
def test_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "MHC_TEST_TRITON": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


def test_the_library_loads_without_triton() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "from mhc_model.kernels import library\n"
        "assert not library.is_available('cpu') and not library.is_available('cuda')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


# The formulas, in float64.


def gated(res: Tensor, gate: Tensor) -> Tensor:
    return torch.lerp(torch.eye(4).to(res), res, gate.to(res)[:, None, None, None])


def plain_enter(
    x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float, tau: float
) -> tuple[Tensor, ...]:
    x, fn, base, strength = (v.double() for v in (x, fn, base, strength))
    normed = F.rms_norm(x.flatten(2), (4 * x.shape[3],), eps=eps)
    raw = base + (normed @ fn) * strength
    pre, post = raw[..., :4].sigmoid(), 2.0 * raw[..., 4:8].sigmoid()
    res = sinkhorn_knopp(raw[..., 8:].unflatten(-1, (4, 4)), tau=tau)
    u = torch.einsum("bti,btic->btc", pre, x)
    return F.rms_norm(u, (x.shape[3],), eps=eps), pre, post, res


def plain_leave(x: Tensor, y: Tensor, post: Tensor, res: Tensor, gate: Tensor) -> Tensor:
    x, y, post, res = (v.double() for v in (x, y, post, res))
    mixed = torch.einsum("btij,btic->btjc", gated(res, gate), x)
    return mixed + post[..., None] * y[:, :, None]


def plain_cross(*inputs: Any, stored: Tensor | None = None) -> tuple[Tensor, ...]:
    x, *rest = inputs
    new = plain_leave(x, *rest[:4])
    if stored is not None:
        # What is stored of the streams is read; rounding has no gradient. The interpreter cuts off
        # to bfloat16 where a GPU rounds to nearest: the sublayer reads what was stored in fact.
        assert bool(((stored - new).abs() <= 2**-7 * new.abs() + 1e-6).all())
        new = new + (stored.double() - new).detach()
    return new, *plain_enter(new, *rest[4:])


def plain_collapse(*inputs: Tensor) -> tuple[Tensor, ...]:
    return (plain_leave(*inputs).mean(dim=2),)


def fused_enter(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(library.enter(*inputs))


def fused_cross(*inputs: Any) -> tuple[Tensor, ...]:
    new, entered = library.cross(*inputs)
    return new, *entered


def fused_collapse(*inputs: Tensor) -> tuple[Tensor, ...]:
    return (library.collapse(*inputs),)


GATES = (0.0, 1.0, 0.3, 0.7)


def crossing(b: int, t: int, c: int, dtype: torch.dtype) -> list[Tensor]:
    """x, y, post, res, gate."""
    x, y = torch.randn(b, t, 4, c).to(dtype), torch.randn(b, t, c).to(dtype)
    res = sinkhorn_knopp(torch.eye(4) + torch.randn(b, t, 4, 4))
    return [x, y, 2.0 * torch.rand(b, t, 4), res, torch.tensor(GATES[:b])]


def parameters(c: int) -> list[Tensor]:
    """fn, base, strength."""
    fn = torch.randn(4 * c, 24) / (4 * c) ** 0.5
    return [fn, torch.randn(24), 0.5 + torch.rand(24)]


def run(
    operation: Operation, inputs: list[Tensor], *constants: float, skip: int = -1
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Outputs, and the gradients for a fixed weighting of all outputs but `skip`."""
    inputs = [v.clone().requires_grad_() for v in inputs]
    outputs = operation(*inputs, *constants)
    generator = torch.Generator().manual_seed(5)
    loss = torch.zeros((), dtype=torch.float64)
    for k, value in enumerate(outputs):
        weights = torch.randn(value.shape, generator=generator)
        if k != skip:
            # Rounded as the gradient will be: this is no error of the kernel.
            loss = loss + (value.double() * weights.to(value.dtype)).sum()
    loss.backward()
    return tuple(v.detach() for v in outputs), [v.grad for v in inputs if v.grad is not None]


def relative(value: Tensor, expected: Tensor) -> float:
    difference = (value.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-12))


def compare(
    fused: Operation,
    plain: Operation,
    inputs: list[Tensor],
    *constants: float,
    skip: int = -1,
) -> None:
    low = inputs[0].dtype != torch.float32
    outputs, gradients = run(fused, inputs, *constants, skip=skip)
    if plain is plain_cross and low:
        plain = functools.partial(plain_cross, stored=outputs[0])
    expected_outputs, expected_gradients = run(plain, inputs, *constants, skip=skip)
    assert len(gradients) == len(expected_gradients) == len(inputs)
    for k, (value, expected) in enumerate(zip(outputs, expected_outputs, strict=True)):
        # Coefficients are float32 in any case; 18 bits of the projections reach them from 16-bit
        # streams.
        bound = 1e-6 if not low else 5e-3 if value.dtype != torch.float32 else 1e-5
        assert relative(value, expected) < bound, f"output {k}"
    for k, (value, expected) in enumerate(zip(gradients, expected_gradients, strict=True)):
        assert value.dtype == inputs[k].dtype
        assert relative(value, expected) < (1e-2 if low else 2e-6), f"gradient {k}"


SHAPES = [(1, 1, 16), (3, 7, 80), (2, 16, 64), (4, 5, 144)]
DTYPES = [torch.float32, torch.bfloat16]


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "t", "c"), SHAPES)
def test_cross(b: int, t: int, c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(b)
    inputs = [*crossing(b, t, c, dtype), *parameters(c)]
    compare(fused_cross, plain_cross, inputs, EPS, TAU, skip=2)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "t", "c"), SHAPES[:2])
def test_enter(b: int, t: int, c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(b)
    inputs = [crossing(b, t, c, dtype)[0], *parameters(c)]
    compare(fused_enter, plain_enter, inputs, EPS, TAU, skip=1)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "t", "c"), SHAPES)
def test_collapse(b: int, t: int, c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(b)
    inputs = crossing(b, t, c, dtype)
    # Not doubly stochastic: else the gate would change nothing, and its gradient were zero.
    inputs[3] = torch.rand(b, t, 4, 4)
    compare(fused_collapse, plain_collapse, inputs)


@interpreted
def test_the_gradient_of_the_projection_is_summed_over_all_splits() -> None:
    # One column block and 50 tokens are several splits, the last of them not full.
    torch.manual_seed(0)
    inputs = [*crossing(2, 25, 16, torch.float32), *parameters(16)]
    compare(fused_cross, plain_cross, inputs, EPS, TAU, skip=2)


@interpreted
def test_a_sublayer_of_another_dtype() -> None:
    torch.manual_seed(0)
    inputs = [*crossing(2, 3, 32, torch.bfloat16), *parameters(32)]
    inputs[1] = inputs[1].float()
    compare(fused_cross, plain_cross, inputs, EPS, TAU, skip=2)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_gate_are_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y, post, res, _ = crossing(2, 5, 32, dtype)
    others = [*parameters(32), EPS, TAU]
    closed, opened = torch.zeros(2), torch.ones(2)
    silent = torch.zeros_like(y)
    new, _ = library.cross(x, silent, post, res, closed, *others)
    assert torch.equal(new, x)
    # A closed gate is a mixing by the identity, an open one by H_res: not nearly, but to the bit.
    identity = torch.eye(4).expand_as(res)
    of_identity = fused_cross(x, y, post, identity, opened, *others)
    for value, expected in zip(
        fused_cross(x, y, post, res, closed, *others), of_identity, strict=True
    ):
        assert torch.equal(value, expected)
    # H_res that only copies: an open gate must hand the entries on as they are.
    order = torch.eye(4)[[2, 0, 3, 1]].expand_as(res)
    new, _ = library.cross(x, silent, post, order, opened, *others)
    assert torch.equal(new[:, :, [2, 0, 3, 1]], x)
    half = torch.full_like(res, 0.1)  # 0.1 is not representable: (0.1 - 1) + 1 is another number
    ones = torch.ones(2, 5, 4, 32)
    ones[:, :, 1:] = 0.0
    new, _ = library.cross(ones, silent.float(), post, half, opened, *others)
    assert torch.equal(new, torch.full_like(new, 0.1))


@interpreted
def test_rows_of_a_batch_do_not_touch() -> None:
    torch.manual_seed(0)
    inputs = crossing(4, 3, 32, torch.float32)
    others = [*parameters(32), EPS, TAU]
    together = fused_cross(*inputs, *others)
    for i in range(4):
        alone = fused_cross(*(v[i : i + 1] for v in inputs), *others)
        for value, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(value, expected[i : i + 1], rtol=2e-6, atol=2e-6)


@interpreted
def test_only_some_gradients_arrive() -> None:
    torch.manual_seed(0)
    inputs = [*crossing(1, 3, 32, torch.float32), *parameters(32)]
    for wanted in (0, 1, 3, 4):
        grads = []
        for operation in (fused_cross, plain_cross):
            leaves = [v.clone().requires_grad_() for v in inputs]
            output = operation(*leaves, EPS, TAU)[wanted].double()
            grads.append(torch.autograd.grad(output.square().sum(), leaves, allow_unused=True))
        for value, expected in zip(*grads, strict=True):
            wish = torch.zeros_like(value) if expected is None else expected
            assert float((value - wish).abs().max()) < 1e-5 * (1.0 + float(wish.abs().max()))
    assert not fused_cross(*leaves, EPS, TAU)[2].requires_grad  # H_pre is for figures


def limit_of(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H_res that the kernel makes of (N, 4, 4) logits, the float64 limit, and both gradients."""
    pairs = []
    for operation in (fused_enter, plain_enter):
        # One token a matrix; the 16 channels of its first stream are the logits. The norm would
        # take their scale away: an eps far above them makes it the same for all tokens.
        leaf = logits.reshape(1, -1, 16).clone().requires_grad_()
        x = torch.zeros(1, leaf.shape[1], 4, 16)
        x[:, :, 0] = leaf
        rms = x.detach().flatten(2).square().mean(dim=-1, keepdim=True).sqrt()
        fn = torch.zeros(64, 24)
        fn[:16, 8:] = torch.eye(16)
        big = float(rms.max()) * 1e6
        res = operation(x, fn, torch.zeros(24), torch.full((24,), big), big**2, 1.0)[3]
        weights = torch.randn(res.shape, generator=torch.Generator().manual_seed(1))
        (grad,) = torch.autograd.grad((res.double() * weights).sum(), leaf)
        pairs.append((res[0].detach(), grad[0].unflatten(-1, (4, 4))))
    return pairs[0][0], pairs[1][0], pairs[0][1] - pairs[1][1]


@interpreted
@pytest.mark.parametrize(("diagonal", "spread"), [(0.0, 1.0), (4.0, 1.0), (8.0, 2.0)])
def test_the_limit_of_sinkhorn(diagonal: float, spread: float) -> None:
    torch.manual_seed(0)
    logits = diagonal * torch.eye(4) + spread * torch.randn(96, 4, 4)
    res, expected, gradient_error = limit_of(logits)
    rows, columns = doubly_stochastic_error(res.double())
    assert float(rows.max()) < 1e-6
    assert float(columns.max()) < 1e-6
    assert float((res - expected).abs().max()) < 1e-5
    assert float(gradient_error.abs().max()) < 1e-5
    assert float(res.min()) >= 0.0


@interpreted
def test_wild_logits_stay_doubly_stochastic_and_finite() -> None:
    torch.manual_seed(0)
    wild = torch.cat([100.0 * torch.randn(31, 4, 4), torch.zeros(1, 4, 4)])
    res, _, gradient_error = limit_of(wild)
    rows, columns = doubly_stochastic_error(res.double())
    assert float(rows.max()) < 1e-6
    assert float(columns.max()) < 1e-6
    assert bool(gradient_error.isfinite().all())


@interpreted
def test_the_operators_are_registered_as_torch_expects() -> None:
    torch.manual_seed(0)
    inputs = [v.requires_grad_() for v in crossing(2, 3, 16, torch.float32)]
    others = [v.requires_grad_() for v in parameters(16)]
    checks = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_static",
    )
    enter_inputs = (inputs[0], *others, EPS, TAU)
    for operator, arguments in (
        (torch.ops.mhc.triton_enter, enter_inputs),
        (torch.ops.mhc.triton_cross, (*inputs, *others, EPS, TAU)),
        (torch.ops.mhc.triton_collapse, tuple(inputs)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


@interpreted
def test_compiles_without_a_break() -> None:
    torch.manual_seed(0)
    inputs = crossing(2, 3, 32, torch.float32)
    others = parameters(32)

    def two_boundaries(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        y, post, res, gate, *parts = rest
        un, _, post, res = library.enter(x, *parts, EPS, TAU)
        x, entered = library.cross(x, un + y, post, res, gate, *parts, EPS, TAU)
        total = library.collapse(x, entered.un.tanh(), entered.post, entered.res, gate)
        return total, entered.res

    compiled = torch.compile(two_boundaries, fullgraph=True, backend="aot_eager")
    outputs, gradients = run(two_boundaries, [*inputs, *others])
    again, gradients_again = run(compiled, [*inputs, *others])
    for value, expected in zip([*again, *gradients_again], [*outputs, *gradients], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@interpreted
def test_what_is_not_served_is_refused() -> None:
    fn, base, strength = parameters(16)
    for shape in ((1, 2, 4, 24), (1, 2, 3, 16)):
        with pytest.raises(ConfigError, match="kernels serve"):
            library.enter(torch.zeros(shape), fn, base, strength, EPS, TAU)
    with pytest.raises(ConfigError, match="projections have shape"):
        library.enter(torch.zeros(1, 2, 4, 32), fn, base, strength, EPS, TAU)
    with pytest.raises(ConfigError, match="float64"):
        library.enter(torch.zeros(1, 2, 4, 16).double(), fn, base, strength, EPS, TAU)
    assert library.is_available("cpu")


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    kernels.select("auto")


@interpreted
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_decoder_takes_them_and_gives_the_same(autocast: bool) -> None:
    """Through `select`, with gates per row, routing watched, and every parameter's gradient."""
    config = ModelConfig(vocab_size=40, n_layers=2, n_heads=2, d_model=32, mhc=MHCConfig())
    model = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    tokens = torch.randint(40, (2, 7), generator=generator)
    gates = torch.tensor([[0.0, 0.3, 1.0, 0.5], [1.0, 0.0, 0.7, 0.2]])
    results = []
    for choice in ("eager", "triton"):
        kernels.select(choice)
        model.zero_grad()
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
            watch_routing(model) as routing,
        ):
            out = model(tokens, gates)
        F.cross_entropy(out.flatten(0, 1), tokens.flatten()).backward()
        moved = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([out.detach(), *moved, routing.sublayers()[1].res])
    for expected, found in zip(*results, strict=True):
        limit = 5e-2 if autocast else 1e-5
        assert (found - expected).norm() <= limit * expected.norm() + 1e-7


@pytest.mark.skipif(IN_INTERPRETER, reason="there the kernels can be used")
@pytest.mark.usefixtures("restored")
def test_the_switch_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"'fast'.*auto, eager, triton"):
        kernels.select("fast")
    model = Decoder(ModelConfig(vocab_size=9, n_layers=1, n_heads=1, d_model=16, mhc=MHCConfig()))
    kernels.select("triton")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="does not run on cpu"):
            model(torch.zeros(1, 3, dtype=torch.int64))


@interpreted
@pytest.mark.usefixtures("restored")
def test_the_switch_names_what_they_do_not_serve() -> None:
    kernels.select("triton")
    for fields, message in (
        ({"projection": "iterations"}, "projection is 'iterations'"),
        ({"n_streams": 2}, "2 streams"),
    ):
        mhc = MHCConfig(**fields)
        model = Decoder(ModelConfig(vocab_size=9, n_layers=1, n_heads=1, d_model=16, mhc=mhc))
        with pytest.raises(ConfigError, match=message):
            model(torch.zeros(1, 3, dtype=torch.int64))
