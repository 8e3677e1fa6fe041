"""What devices can do, and what of memory a process has taken."""

import math

import pytest
import torch

from train.loop import peak_memory, peak_tflops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L20", None),
        ("Another", None),
    ],
)
def test_known_devices(name, tflops):
    assert peak_tflops(name, "bfloat16") == tflops
    assert peak_tflops(name, "float32") is None


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 50_000_000)
    assert peak_memory(torch.device("cpu")) >= before + 150_000_000
    assert math.isfinite(float(held[0]))
