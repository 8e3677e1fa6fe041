"""Counts what one run does and keeps: operations, kernels and bytes saved for the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchCount(TorchDispatchMode):
    """Counts the operations below autograd; a custom operator is one, whatever it does inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.views = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.is_view or func is torch.ops.aten._unsafe_view.default:
            self.views += 1
        else:
            self.operations += 1
        return func(*args, **(kwargs or {}))


def count_kernels(run: Callable[[], Any], device: torch.device) -> int:
    """Kernels and copies of one run on a GPU; on a CPU, the innermost aten operations that compute.

    These include what is inside custom operators.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        run()
    events = recorded.events()
    if device.type == "cuda":
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    return sum(_innermost(event) for event in events if event.cpu_parent is None)


def _innermost(event: Any) -> int:
    inside = sum(_innermost(child) for child in event.cpu_children)
    return inside or int(_computes(event.name))


def _computes(name: str) -> bool:
    """Whether a profiled operation moves numbers: no view, no allocation, no mere wrapper."""
    space, _, operation = name.partition("::")
    packet = getattr(torch.ops.aten, operation, None) if space == "aten" else None
    if packet is None or operation.startswith(("empty", "new_empty", "resize", "_unsafe_view")):
        return False
    overload = getattr(packet, packet.overloads()[0])
    wraps = torch._C._dispatch_has_kernel_for_dispatch_key
    return not overload.is_view and not wraps(overload.name(), "CompositeImplicitAutograd")


def saved_bytes(run: Callable[[], Any], parameters: list[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters apart; storages once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, Any] = {}  # holds the storages: a freed one's address could come again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())
