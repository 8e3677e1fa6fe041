"""Doubly stochastic matrices, by their short name; the code is in `mhc_model.streams.sinkhorn`."""

from mhc_model.streams import (
    SinkhornKnopp,
    doubly_stochastic_error,
    permutation_mixture,
    sinkhorn_knopp,
)

__all__ = ["SinkhornKnopp", "doubly_stochastic_error", "permutation_mixture", "sinkhorn_knopp"]
