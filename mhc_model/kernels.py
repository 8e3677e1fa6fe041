"""The choice of kernels, by its short name; the code is in `mhc_model.streams.kernels`."""

from mhc_model.streams.kernels import select, takes_triton

__all__ = ["select", "takes_triton"]
