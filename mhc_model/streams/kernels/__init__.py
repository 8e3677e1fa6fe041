"""What moves the streams: the operations around a sublayer, as fast as the device allows.

In: streams, a sublayer's output, projections and gates. Out: the streams after it. May import the
ground (config, errors).

    eager.py            torch operations: every device and configuration
    library.py          operators of torch over the Triton kernels, with their gradients
    triton_launch.py    shapes, checks and launches
    triton_kernels.py   the kernels: also the norm and H_res; triton_sinkhorn.py has its limit

Triton's are taken on CUDA where they serve the streams, unless `select` says otherwise, or the
environment variable MHC_KERNELS at the start.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor

from mhc_model.config import MHCConfig
from mhc_model.errors import ConfigError
from mhc_model.streams.kernels import library
from mhc_model.streams.kernels.eager import (
    Entry,
    collapse,
    cross,
    enter,
    leave,
    precise,
    project,
    read,
    start,
)

__all__ = [
    "Entry",
    "collapse",
    "cross",
    "enter",
    "leave",
    "library",
    "precise",
    "project",
    "read",
    "select",
    "start",
    "takes_triton",
]

CHOICES = ("auto", "eager", "triton")
_choice = "auto"
_told: set[str] = set()


def select(choice: str) -> None:
    """Chooses the kernels of all models of this process.

    Args:
        choice: 'auto' takes Triton's on CUDA where they serve the streams, and says once where they
            do not; 'eager' never does; 'triton' always, also in Triton's interpreter.

    Raises:
        ConfigError: for another word.
    """
    global _choice
    if choice not in CHOICES:
        raise ConfigError(f"kernels are {choice!r}; allowed: {', '.join(CHOICES)}")
    _choice = choice


def takes_triton(x: Tensor, mhc: MHCConfig, normalises: bool = True) -> bool:
    """Whether streams go through the Triton kernels.

    Args:
        x: (..., c) of their device, dtype and width: the streams, or what they start from.
        mhc: their number and projection.
        normalises: the sublayer's norm is an RMSNorm.

    Raises:
        ConfigError: if they must and cannot.
    """
    if _choice == "eager" or (_choice == "auto" and not x.is_cuda):
        return False
    reason = _obstacle(x, mhc, normalises)
    if reason is None:
        return True
    if _choice == "triton":
        raise ConfigError(f"the Triton kernels cannot be used: {reason}")
    if not torch.compiler.is_compiling() and reason not in _told:
        _told.add(reason)
        warnings.warn(f"slower path: torch operations, not Triton kernels: {reason}", stacklevel=2)
    return False


def _obstacle(x: Tensor, mhc: MHCConfig, normalises: bool) -> str | None:
    if not library.is_available(x.device):
        return f"Triton is not installed, or does not run on {x.device.type}"
    if not normalises:
        return "the norm before the sublayers is LayerNorm; they have RMSNorm"
    if not mhc.dynamic:
        return "dynamic is false; they have the dynamic form"
    if mhc.single_pass:
        return "single_pass is true; in them a sublayer reads with its own H_pre"
    n, c = mhc.n_streams, x.shape[-1]
    if mhc.projection != "limit":
        return f"the projection is {mhc.projection!r}; they have 'limit'"
    if n != library.STREAMS or c % library.CHANNELS:
        return f"{n} streams of width {c}; they take 4 of a multiple of {library.CHANNELS}"
    if x.dtype not in library.DTYPES:
        return f"streams are {x.dtype}"
    return None


select(os.environ.get("MHC_KERNELS", "auto"))
