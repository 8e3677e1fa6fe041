"""Doubly stochastic matrices from logits: the limit of Sinkhorn-Knopp, found by Newton's method.

Sinkhorn-Knopp scales rows and columns of exp(logits) in turn. It converges slowly near a
permutation: for logits 4 I + N(0, 1) twenty iterations leave row sums up to 3e-2 away from one.
Its limit diag(e^a) exp(logits) diag(e^b) is the minimum of a convex function of the row potentials
a alone (the columns are normalised by a softmax); the Hessian of that function is the Laplacian of
a graph on n nodes. So a Newton step costs one small linear system, and so does the exact gradient
of the limit, which needs nothing of how it was reached.

Axes: n rows (senders), m columns (receivers).
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Far from its minimum a Newton step overshoots. Logits that span more than START are therefore
# solved at a higher temperature first, which is halved at every step with the potentials carried
# over, and no potential moves by more than LONGEST_STEP at once.
START = 4.0
LONGEST_STEP = 4.0
# Row sums of the float64 iterate are this close to one when it ends. 20,000 matrices of N(0, 1)
# need 4 steps, of 8 I + N(0, 4) 5, of N(0, 100) 7, heated ones included.
TOLERANCE = 1e-9
MOST_STEPS = 40
HEATED_STEPS = 8
WIDEST = START * 2.0**HEATED_STEPS
# On a GPU, asking whether it has converged would wait for the device.
BLIND_STEPS = 6


def sinkhorn_knopp(logits: Tensor, iters: int = 20, tau: float = 1.0, exact: bool = True) -> Tensor:
    """Maps logits to doubly stochastic matrices (Sinkhorn and Knopp, 1967).

    Args:
        logits: (..., n, n), any leading shape and floating dtype, finite, of any range.
        iters: iterations of the plain algorithm, each scaling the rows and then the columns. With
            `exact` the result is their limit, whatever this number.
        tau: temperature; the logits are divided by it.
        exact: the limit itself: rows and columns sum to one within 1e-6, and the gradient is that
            of the limit. Where logits are so wide (some hundreds) that entries of the limit vanish,
            a rounding step closes it. Without `exact`, plain Sinkhorn-Knopp: columns sum to one,
            rows only nearly.

    Returns:
        (..., n, n), float32 (float64 for float64 logits), entries >= 0.

    Raises:
        ValueError: if the last two dimensions differ, or iters or tau are not positive.
    """
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; expected (..., n, n)")
    if iters < 1 or not tau > 0:
        raise ValueError(f"iters is {iters} and tau is {tau}; both must be positive")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logits = logits.to(dtype)
    if tau != 1.0:
        logits = logits / tau
    if exact:
        return cast(Tensor, torch.ops.mhc.sinkhorn_limit(logits))
    return _iterate(logits, iters)


@torch.library.custom_op("mhc::sinkhorn_limit", mutates_args=())
def _sinkhorn_limit(logits: Tensor) -> Tensor:
    """(..., n, n) -> (..., n, n), same dtype. One operator for `torch.compile`: it has a loop."""
    # float64 inside: the matrices are few beside the streams that they mix, and the potentials of
    # near-permutations are large numbers whose differences count.
    n = logits.shape[-1]
    if logits.numel() == 0:
        return torch.empty_like(logits)
    scores, heat = _first_heat(logits.reshape(-1, n, n).double())
    blind = logits.device.type != "cpu"
    p = torch.softmax(scores, dim=1)
    if blind or bool(heat.min() < 1.0):  # few logits span so much; asking is cheap on the CPU
        p = _cool_down(scores, heat)
    for _ in range(BLIND_STEPS if blind else MOST_STEPS):
        # A plain Sinkhorn step first: it also repairs what a Newton step overshot.
        p = p * p.sum(dim=2, keepdim=True).clamp_(min=1e-300).reciprocal_()
        p = p * p.sum(dim=1, keepdim=True).clamp_(min=1e-300).reciprocal_()
        missing = 1.0 - p.sum(dim=2, keepdim=True)
        if not blind and float(missing.abs().max()) < TOLERANCE:
            return p.to(logits.dtype).view_as(logits)
        p = p * _newton_step(p, missing).exp()
        p = p * p.sum(dim=1, keepdim=True).clamp_(min=1e-300).reciprocal_()
    # Only here on a GPU, and where the limit has no positive entries left.
    return _round_to_birkhoff(p).to(logits.dtype).view_as(logits)


def _cool_down(scores: Tensor, heat: Tensor) -> Tensor:
    """Near-limits at higher temperatures, each the start of the next; the last is at one."""
    a = scores.new_zeros(1)
    for _ in range(HEATED_STEPS):
        p = torch.softmax(heat * scores + a, dim=1)
        a = a - p.sum(dim=2, keepdim=True).clamp_(min=1e-300).log()
        p = torch.softmax(heat * scores + a, dim=1)
        a = a + _newton_step(p, 1.0 - p.sum(dim=2, keepdim=True))
        cooler = (2.0 * heat).clamp(max=1.0)
        a, heat = a * (cooler / heat), cooler
        if heat.device.type == "cpu" and bool(heat.min() == 1.0):
            break
    return torch.softmax(scores + a, dim=1)


@_sinkhorn_limit.register_fake
def _(logits: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _first_heat(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, n, n) with columns of mean zero, and what brings their span down to START."""
    centred = scores - scores.mean(dim=1, keepdim=True)
    span = centred.abs().amax(dim=(1, 2), keepdim=True)
    # The limit of wider logits is the best assignment, which their scale does not change.
    centred = centred * (WIDEST / span).clamp(max=1.0)
    return centred, (START / span.clamp(max=WIDEST)).clamp(max=1.0)


def _newton_step(p: Tensor, missing: Tensor) -> Tensor:
    return _solve_laplacian(p, missing).clamp(-LONGEST_STEP, LONGEST_STEP)


def _solve_laplacian(p: Tensor, right: Tensor) -> Tensor:
    """Solves (diag(p p^T 1) - p p^T) x = right, for p (N, n, n) and right (N, n, 1) of sum zero.

    The matrix is the Laplacian of a graph with weights p p^T. Its diagonal is taken as the sum of
    the off-diagonal weights: as 1 - (p p^T)_ii it would cancel where p is near a permutation.
    """
    n = p.shape[-1]
    # A Laplacian is singular. One on the last node's diagonal makes x zero there and changes no
    # difference, which is all that counts; the others keep a node that nothing reaches solvable.
    ground = p.new_full((n,), 1e-14)
    ground[-1] = 1.0
    system = torch.bmm(p, p.mT).neg_()
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal.zero_()
    diagonal.copy_(ground - system.sum(dim=2))
    x: Tensor = torch.linalg.solve_ex(system, right)[0]
    return x


def _save_limit(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _limit_backward(ctx: Any, grad: Tensor) -> Tensor:
    """Gradient of the limit by the implicit function theorem.

    dL/dlogits_ij = p_ij (g_ij - alpha_i - beta_j) with alpha, beta such that its rows and columns
    sum to zero: the logits have no influence on the sums. Columns: beta = columns of (g * p) -
    p^T alpha. Rows: (I - p p^T) alpha = sum_j p_ij (g_ij - (g * p)_j), a Laplacian again.
    """
    (limit,) = ctx.saved_tensors
    n = limit.shape[-1]
    p, g = limit.reshape(-1, n, n).double(), grad.reshape(-1, n, n).double()
    p = p / p.sum(dim=1, keepdim=True).clamp(min=1e-300)
    # The means over a column leave only differences, with no cancellation to come.
    centred = g - (g * p).sum(dim=1, keepdim=True)
    alpha = _solve_laplacian(p, (p * centred).sum(dim=2, keepdim=True))
    moved = p * (centred - alpha + torch.bmm(alpha.mT, p))
    return moved.to(limit.dtype).view_as(limit)


torch.library.register_autograd("mhc::sinkhorn_limit", _limit_backward, setup_context=_save_limit)


def _iterate(logits: Tensor, iters: int) -> Tensor:
    """Plain Sinkhorn-Knopp, `iters` times rows then columns."""
    # Rows and columns go in front: with tokens innermost every step is one vectorised pass over
    # long contiguous runs instead of reductions over n numbers.
    log_p = logits.movedim((-2, -1), (0, 1)).contiguous()
    # The first iteration needs logarithms: it takes any range of logits. After it every row and
    # column sum stays within [1/n, n], so the others cannot over- or underflow and need no exp.
    # The floor bounds how much an entry can still grow, and with it the gradient on the way back:
    # without it, logits of +-200 and a hundred iterations give inf * 0 there.
    log_p = log_p - torch.logsumexp(log_p, dim=1, keepdim=True)
    log_p = log_p - torch.logsumexp(log_p, dim=0, keepdim=True)
    p = cast(Tensor, _Scaling.apply(log_p.clamp(min=-60.0).exp(), iters - 1))
    return p.movedim((0, 1), (-2, -1))


class _Scaling(torch.autograd.Function):
    """`iters` times: divide the rows by their sums, then the columns by theirs.

    Saves its input only. The backward pass does the iterations again and goes back through them;
    recorded by autograd they would cost several times the operations and 2 * iters matrices.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, iters: int) -> Tensor:
        ctx.save_for_backward(p)
        ctx.iters = iters
        for dim in (1, 0) * iters:
            p = p / p.sum(dim=dim, keepdim=True)
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        steps = []
        for dim in (1, 0) * ctx.iters:
            total = p.sum(dim=dim, keepdim=True)
            p = p / total
            steps.append((dim, total, p))
        # With q = p / s and s = sum(p): dL/dp = (dL/dq - sum(dL/dq * q)) / s.
        for dim, total, p in reversed(steps):
            grad = (grad - (grad * p).sum(dim=dim, keepdim=True)) / total
        return grad, None


def _round_to_birkhoff(p: Tensor) -> Tensor:
    """p (..., n, n) >= 0 onto the doubly stochastic matrices (arXiv:1705.09634, algorithm 2).

    Scales down the rows that are too heavy, then the columns, and returns the missing mass as one
    non-negative rank-one term.
    """
    p = p * p.sum(dim=-1, keepdim=True).reciprocal().clamp(max=1.0)
    p = p * p.sum(dim=-2, keepdim=True).reciprocal().clamp(max=1.0)
    row_gap = (1.0 - p.sum(dim=-1, keepdim=True)).clamp(min=0.0)
    column_gap = (1.0 - p.sum(dim=-2, keepdim=True)).clamp(min=0.0)
    # Both gaps hold the same mass up to rounding, which is all there is in a converged matrix.
    mass = row_gap.sum(dim=-2, keepdim=True).clamp(min=torch.finfo(p.dtype).eps)
    return p + row_gap * (column_gap / mass)


def permutation_matrices(n: int) -> Tensor:
    """(n!, n, n) float32, the identity first."""
    return torch.stack([torch.eye(n)[list(order)] for order in itertools.permutations(range(n))])


def permutation_mixture(logits: Tensor, n: int) -> Tensor:
    """mHC-lite: the convex combination of all n! permutations that a softmax gives.

    Doubly stochastic by construction (Birkhoff and von Neumann), with no iteration.

    Args:
        logits: (..., n!) in the order of `permutation_matrices`, any floating dtype.
        n: number of streams.

    Returns:
        (..., n, n), float32 (float64 for float64 logits).

    Raises:
        ValueError: if there are not n! logits.
    """
    matrices = permutation_matrices(n)
    if logits.shape[-1] != len(matrices):
        raise ValueError(f"{logits.shape[-1]} logits for {n} streams; expected {len(matrices)}")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    table = matrices.to(logits.device, dtype).flatten(1)
    with torch.autocast(logits.device.type, enabled=False):
        return (torch.softmax(logits.to(dtype), dim=-1) @ table).unflatten(-1, (n, n))


def doubly_stochastic_error(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Largest distance of a row sum and of a column sum from one.

    Args:
        matrices: (..., n, n).

    Returns:
        Two (...) tensors: row error and column error.
    """
    rows = (matrices.sum(dim=-1) - 1.0).abs().amax(dim=-1)
    columns = (matrices.sum(dim=-2) - 1.0).abs().amax(dim=-1)
    return rows, columns


class SinkhornKnopp(nn.Module):
    """A learned doubly stochastic matrix, the same for every token.

    For experiments and as the static form of H_res; the decoder's own is per token
    (`mhc_model.connections.HyperConnection`).
    """

    def __init__(
        self,
        n: int = 4,
        iters: int = 20,
        tau: float = 1.0,
        exact: bool = True,
        diagonal: float = 4.0,
    ) -> None:
        """Starts at diagonal * I for n streams; the other arguments as in `sinkhorn_knopp`."""
        super().__init__()
        self.iters, self.tau, self.exact = iters, tau, exact
        self.logits = nn.Parameter(diagonal * torch.eye(n))

    def get_connection_matrix(self) -> Tensor:
        """(n, n) float32, differentiable: entry (i, j) is what stream i sends to stream j."""
        return sinkhorn_knopp(self.logits, self.iters, self.tau, self.exact)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes streams x (..., n, c); stream j gets sum_i matrix[i, j] x_i."""
        return self.get_connection_matrix().mT.to(x.dtype) @ x
