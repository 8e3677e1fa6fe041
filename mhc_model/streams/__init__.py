"""mHC around one sublayer: what the residual streams send to it and to each other.

In: streams (..., n, c), a sublayer's output and a gate. Out: the streams after it, and the
coefficients H_pre, H_post and H_res of each token. May import the ground (config, errors).

    connections.py  `HyperConnection`: coefficients from the streams, and their use
    head.py         `StreamHead`: from n streams to one, with learned weights
    projections.py  from logits to H_res, by the name of the projection
    sinkhorn.py     doubly stochastic matrices: the exact limit, its gradient, mixtures
    kernels/        what moves the streams, in torch operations and in Triton
"""

from mhc_model.streams.connections import Coefficients, HyperConnection, gated, scale_columns
from mhc_model.streams.head import StreamHead
from mhc_model.streams.sinkhorn import (
    SinkhornKnopp,
    doubly_stochastic_error,
    permutation_mixture,
    sinkhorn_knopp,
)

__all__ = [
    "Coefficients",
    "HyperConnection",
    "SinkhornKnopp",
    "StreamHead",
    "doubly_stochastic_error",
    "gated",
    "permutation_mixture",
    "scale_columns",
    "sinkhorn_knopp",
]
