"""What a device can do at most, what of its memory a process has taken, and repeatable results."""

from __future__ import annotations

import os
import re
import resource
import sys

import torch

# Dense bfloat16 TFLOP/s by words of the name that torch gives a GPU, from NVIDIA's and AMD's data
# sheets. The first that fits counts.
BFLOAT16_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H800": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "MI300X": 1307.4,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
}


def peak_tflops(device_name: str, precision: str) -> float | None:
    """TFLOP/s that a GPU can reach, None where its name is unknown.

    Args:
        device_name: as torch.cuda.get_device_name gives it.
        precision: "bfloat16"; float32 has other units, and here no table.
    """
    if precision != "bfloat16":
        return None
    known = (
        peak
        for name, peak in BFLOAT16_TFLOPS.items()
        if re.search(rf"(?<!\w){name}(?!\w)", device_name)
    )
    return next(known, None)


def device_peak_tflops(device: torch.device, precision: str) -> float | None:
    """`peak_tflops` of a device; None for a CPU."""
    if device.type != "cuda":
        return None
    return peak_tflops(torch.cuda.get_device_name(device), precision)


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: allocated on a GPU; on a CPU resident, of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def make_deterministic() -> None:
    """From now on an operation gives the same bits every time, or is an error.

    Call it before the process first uses a GPU: cuBLAS reads its part of this then.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
