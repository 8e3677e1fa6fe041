"""The Triton kernels as operators of torch, and the process in which they are interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from triton_cases import EPS, IN_INTERPRETER, TAU, crossing, interpreted, parameters, run

from mhc_model.errors import ConfigError
from mhc_model.streams.kernels import library

FILES = ("test_triton*.py", "test_kernel_*.py")


@pytest.mark.skipif(IN_INTERPRETER, reason="starts the process that this is")
def test_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "MHC_TEST_TRITON": "1", "TRITON_INTERPRET": "1"}
    files = [str(file) for name in FILES for file in Path(__file__).parent.glob(name)]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *files]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@pytest.mark.skipif(IN_INTERPRETER, reason="there Triton is loaded")
def test_the_library_loads_without_triton() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "from mhc_model.streams.kernels import library\n"
        "assert not library.is_available('cpu') and not library.is_available('cuda')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


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
