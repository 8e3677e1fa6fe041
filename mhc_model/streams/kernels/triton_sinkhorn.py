# The bodies are Triton's language: it joins tuples with + only, and has types of its own.
# ruff: noqa: RUF005
# mypy: ignore-errors
"""The limit of Sinkhorn-Knopp and its gradient in a thread's registers, in Triton, for n = 4.

The method is that of `mhc_model.sinkhorn`, in float32: a matrix is a tuple of 16 (t,) tensors, row
by row, and the Laplacian is solved without a difference of near-equal numbers.

Axes: t token (one a thread).
"""

from __future__ import annotations

import triton
import triton.language as tl

# See mhc_model.sinkhorn for these three.
START = tl.constexpr(4.0)
LONGEST_STEP = tl.constexpr(4.0)
WIDEST = tl.constexpr(1024.0)
# Newton steps at temperature one.
POLISH_STEPS = tl.constexpr(4)
TINY = tl.constexpr(1e-30)


@triton.jit
def zeros(like, n: tl.constexpr):
    planes = ()
    for _ in tl.static_range(n):
        planes = planes + (tl.zeros_like(like),)
    return planes


# The limit of Sinkhorn-Knopp. A matrix is a tuple of 16 (t,) float32 tensors, row by row.


@triton.jit
def row_sums(p):
    total = ()
    for i in tl.static_range(4):
        total = total + ((p[4 * i] + p[4 * i + 1]) + (p[4 * i + 2] + p[4 * i + 3]),)
    return total


@triton.jit
def _column_sums(p):
    total = ()
    for j in tl.static_range(4):
        total = total + ((p[j] + p[4 + j]) + (p[8 + j] + p[12 + j]),)
    return total


@triton.jit
def _inverse(total):
    out = ()
    for i in tl.static_range(4):
        out = out + (1.0 / tl.maximum(total[i], TINY),)
    return out


@triton.jit
def _scale_rows(p, r):
    out = ()
    for i in tl.static_range(16):
        out = out + (p[i] * r[i // 4],)
    return out


@triton.jit
def _scale_columns(p, r):
    out = ()
    for i in tl.static_range(16):
        out = out + (p[i] * r[i % 4],)
    return out


@triton.jit
def _normalise_columns(p):
    return _scale_columns(p, _inverse(_column_sums(p)))


@triton.jit
def _softmax_columns(scores, heat, a):
    """Softmax over the rows of heat * scores_ij + a_i."""
    s = ()
    for i in tl.static_range(16):
        s = s + (heat * scores[i] + a[i // 4],)
    p = ()
    for i in tl.static_range(16):
        top = tl.maximum(s[i % 4], s[4 + i % 4])
        top = tl.maximum(top, tl.maximum(s[8 + i % 4], s[12 + i % 4]))
        p = p + (tl.exp(s[i] - top),)
    return _normalise_columns(p)


@triton.jit
def _solve_laplacian(p, f01, f02, f03, f12, f13, f23):
    """x with (diag(p p^T 1) - p p^T) x = r and x_3 = 0, as a tuple of 4.

    r comes as flows, r_i = sum_k f_ik with f_ik = -f_ki. A node is eliminated by moving its weights
    and flows to the edges that are left, so its degree is a sum of weights, never one minus
    something, and r loses nothing where nodes hang together loosely: nothing cancels, however
    close p is to a permutation (the idea of Grassmann, Taksar and Heyman).
    """
    w01 = p[0] * p[4] + p[1] * p[5] + p[2] * p[6] + p[3] * p[7]
    w02 = p[0] * p[8] + p[1] * p[9] + p[2] * p[10] + p[3] * p[11]
    w03 = p[0] * p[12] + p[1] * p[13] + p[2] * p[14] + p[3] * p[15]
    w12 = p[4] * p[8] + p[5] * p[9] + p[6] * p[10] + p[7] * p[11]
    w13 = p[4] * p[12] + p[5] * p[13] + p[6] * p[14] + p[7] * p[15]
    w23 = p[8] * p[12] + p[9] * p[13] + p[10] * p[14] + p[11] * p[15]
    inverse0 = 1.0 / (w01 + w02 + w03 + TINY)
    to1, to2, to3 = w01 * inverse0, w02 * inverse0, w03 * inverse0
    w12, f12 = w12 + to1 * w02, f12 + (to1 * f02 - to2 * f01)
    w13, f13 = w13 + to1 * w03, f13 + (to1 * f03 - to3 * f01)
    w23, f23 = w23 + to2 * w03, f23 + (to2 * f03 - to3 * f02)
    inverse1 = 1.0 / (w12 + w13 + TINY)
    from2, from3 = w12 * inverse1, w13 * inverse1
    x2 = (f23 + (from2 * f13 - from3 * f12)) / (w23 + from2 * w13 + TINY)
    x1 = (f12 + f13) * inverse1 + from2 * x2
    x0 = (f01 + f02 + f03) * inverse0 + to1 * x1 + to2 * x2
    return (x0, x1, x2, tl.zeros_like(x0))


@triton.jit
def _newton_step(p):
    """Row potentials that bring p, whose columns sum to one, closer to rows that do."""
    # What row i lacks, 1 - sum_j p_ij, is the sum of p_ji - p_ij over j: the ones cancel exactly.
    x = _solve_laplacian(
        p, p[4] - p[1], p[8] - p[2], p[12] - p[3], p[9] - p[6], p[13] - p[7], p[14] - p[11]
    )
    out = ()
    for i in tl.static_range(4):
        out = out + (tl.minimum(tl.maximum(x[i], -LONGEST_STEP), LONGEST_STEP),)
    return out


@triton.jit
def sinkhorn_limit(logits):
    """Steps of `mhc_model.sinkhorn`, in float32."""
    scores = ()
    span, total = tl.zeros_like(logits[0]), _column_sums(logits)
    for i in tl.static_range(16):
        scores = scores + (logits[i] - 0.25 * total[i % 4],)
        span = tl.maximum(span, tl.abs(scores[i]))
    narrow = WIDEST / tl.maximum(span, WIDEST)
    narrowed = ()
    for i in tl.static_range(16):
        narrowed = narrowed + (scores[i] * narrow,)
    heat = START / tl.maximum(tl.minimum(span, WIDEST), START)
    a = zeros(span, 4)
    while tl.min(heat, axis=0) < 1.0:  # eight times at most, and not at all for usual logits
        p = _softmax_columns(narrowed, heat, a)
        scale = _inverse(row_sums(p))
        step = _newton_step(_normalise_columns(_scale_rows(p, scale)))
        cooler = tl.minimum(2.0 * heat, 1.0)
        moved = ()
        for i in tl.static_range(4):
            moved = moved + ((a[i] + tl.log(scale[i]) + step[i]) * (cooler / heat),)
        a, heat = moved, cooler
    p = _softmax_columns(narrowed, heat, a)
    for _ in range(POLISH_STEPS):
        p = _normalise_columns(_scale_rows(p, _inverse(row_sums(p))))
        step, scale = _newton_step(p), ()
        for i in tl.static_range(4):
            scale = scale + (tl.exp(step[i]),)
        p = _normalise_columns(_scale_rows(p, scale))
    return _round_to_birkhoff(p)


@triton.jit
def _capped(total):
    out = ()
    for i in tl.static_range(4):
        out = out + (tl.minimum(total[i], 1.0),)
    return out


@triton.jit
def _lack(total):
    out = ()
    for i in tl.static_range(4):
        out = out + (tl.maximum(1.0 - total[i], 0.0),)
    return out


@triton.jit
def _round_to_birkhoff(p):
    p = _scale_rows(p, _capped(_inverse(row_sums(p))))
    p = _scale_columns(p, _capped(_inverse(_column_sums(p))))
    rows, columns = _lack(row_sums(p)), _lack(_column_sums(p))
    mass = 1.0 / tl.maximum((rows[0] + rows[1]) + (rows[2] + rows[3]), 1.1920929e-07)
    out = ()
    for i in tl.static_range(16):
        out = out + (p[i] + rows[i // 4] * (columns[i % 4] * mass),)
    return out


@triton.jit
def _flow(p, g, i: tl.constexpr, k: tl.constexpr):
    total = p[4 * i] * p[4 * k] * (g[4 * i] - g[4 * k])
    for j in tl.static_range(1, 4):
        total += p[4 * i + j] * p[4 * k + j] * (g[4 * i + j] - g[4 * k + j])
    return total


@triton.jit
def limit_gradient(p, g):
    """Gradient of the logits for g, that of the limit p: `_limit_backward` in mhc_model.sinkhorn.

    p_ij (g_ij - alpha_i - beta_j), where beta_j is the mean of a column of g - alpha under p:
    p_ij sum_k p_kj ((g_ij - alpha_i) - (g_kj - alpha_k)), differences only.
    """
    f01, f02, f03 = _flow(p, g, 0, 1), _flow(p, g, 0, 2), _flow(p, g, 0, 3)
    f12, f13, f23 = _flow(p, g, 1, 2), _flow(p, g, 1, 3), _flow(p, g, 2, 3)
    alpha, moved, out = _solve_laplacian(p, f01, f02, f03, f12, f13, f23), (), ()
    for i in tl.static_range(16):
        moved = moved + (g[i] - alpha[i // 4],)
    for i in tl.static_range(16):
        total = tl.zeros_like(p[0])
        for k in tl.static_range(4):
            if k != i // 4:
                total += p[4 * k + i % 4] * (moved[i] - moved[4 * k + i % 4])
        out = out + (p[i] * total,)
    return out
