"""The table `kernels`: bandwidth of the Triton kernels that move the streams."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants import OurPair, tensors_in
from benchmarks.streams import triton_available
from benchmarks.timing import interleave
from mhc_model.config import MHCConfig

# What the kernels have to move at least, in rows of c numbers a token, as
# mhc_model/kernels/triton_kernels.py gives it; part of the kernel's name -> rows.
MOVED = {
    "enter forward": {"boundary_forward": 5},
    "enter backward": {"boundary_backward": 9, "projection_gradient": 4},
    "cross forward": {"boundary_forward": 10},
    "cross backward": {"boundary_backward": 15, "projection_gradient": 4},
    "collapse forward": {"collapse_forward": 6},
    "collapse backward": {"collapse_backward": 11},
}


def measure_kernels(options: argparse.Namespace) -> dict[str, Any]:
    """Bandwidth of the kernels that move the streams, as a share of a large copy's."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if not triton_available(device):
        print("\nkernels: left out, no Triton kernels for the streams here")
        return {"rows": []}
    copy = measure_copy(options.rounds, device)
    row_bytes = options.batch * options.tokens * options.width * dtype.itemsize
    functions = boundary_calls(options, device, dtype)
    walls = interleave(functions, options.rounds, device)
    rows = []
    print(f"\nkernels: a copy of 1 GiB runs at {copy / 1e9:.0f} GB/s")
    print(f"{'':42}{'ms':>9}{'GB/s':>9}{'of copy':>9}")
    for name, function in functions.items():
        print(f"{name + ', with launches':42}{statistics.median(walls[name].wall):9.3f}")
        for kernel, milliseconds in device_times(function, options.rounds).items():
            row = {"operation": name, "kernel": kernel, "ms": milliseconds}
            line = f"  {kernel[:38]:40}{milliseconds:9.3f}"
            known = [moved for part, moved in MOVED[name].items() if part in kernel]
            if known:
                rate = known[0] * row_bytes / (1e-3 * milliseconds)
                row |= {"bytes_per_s": rate, "share_of_copy": rate / copy}
                line += f"{rate / 1e9:9.0f}{rate / copy:9.2f}"
            print(line)
            rows.append(row)
    return {
        "copy_bytes_per_s": copy,
        "wall_ms": {k: v.wall for k, v in walls.items()},
        "rows": rows,
    }


def measure_copy(rounds: int, device: torch.device) -> float:
    """Bytes read and written per second by the copy of 1 GiB."""
    source = torch.zeros(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, rounds, device)["copy"].wall
    return 2 * source.nbytes / (1e-3 * statistics.median(times))


def device_times(function: Callable[[], Any], times: int) -> dict[str, float]:
    """Milliseconds on the device per call, by kernel."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(times):
            function()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent = 1e-3 * event.time_range.elapsed_us() / times
            found[event.name] = found.get(event.name, 0.0) + spent
    return found


def boundary_calls(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """Forward and backward of what a hyper-connection does at a boundary."""
    b, t, c = options.batch, options.tokens, options.width
    pair = OurPair(MHCConfig(), [nn.Identity(), nn.Identity()], c, 1e-6).to(device)
    first, second = pair.connections
    shape = (b, t, first.config.n_streams, c)
    x = torch.randn(shape, device=device, dtype=dtype).requires_grad_()
    y = torch.randn(b, t, c, device=device, dtype=dtype).requires_grad_()
    gate = torch.rand(b, device=device).requires_grad_()
    before = first.enter(x)[1]
    before = type(before)(*(part.detach().requires_grad_() for part in before))
    calls: dict[str, tuple[Callable[[], Any], list[Tensor]]] = {
        "enter": (lambda: first.enter(x), [x, *first.parameters()]),
        "cross": (
            lambda: second.cross(x, y, before, gate),
            [x, y, gate, *before, *second.parameters()],
        ),
        "collapse": (lambda: second.collapse(x, y, before, gate), [x, y, gate, *before]),
    }
    functions: dict[str, Callable[[], Any]] = {}
    for name, (call, inputs) in calls.items():
        outputs = [part for part in tensors_in(call()) if part.requires_grad]
        grads = [torch.randn_like(part) for part in outputs]
        functions[f"{name} forward"] = call
        functions[f"{name} backward"] = partial(
            torch.autograd.grad, outputs, inputs, grads, retain_graph=True, allow_unused=True
        )
    return functions


def moves_by_triton(run: Callable[[], Any]) -> bool:
    """Whether one of the kernels of `MOVED` ran: what happened, whatever was asked for."""
    parts = {part for kernel_parts in MOVED.values() for part in kernel_parts}
    return any(part in kernel for kernel in device_times(run, 1) for part in parts)
