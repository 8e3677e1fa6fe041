# The bodies are Triton's language: it joins tuples with + only, and has types of its own.
# ruff: noqa: RUF005
# mypy: ignore-errors
"""Hyper-connections as Triton kernels: one kernel per boundary between two sublayers and direction.

What each kernel moves through device memory per token, in units of c * itemsize (one row of c
channels); a second read of what the same program has just touched counts as an L2 hit, in brackets:

    boundary_forward, cross   reads x 4, y 1; writes x' 4, u 1               10  (+ x' 4)
    boundary_forward, enter   reads x 4; writes u 1                           5  (+ x 4)
    boundary_backward, cross  reads x 4, y 1, dx' 4, du 1; writes dx 4, dy 1 15  (+ x, y, du 6)
    boundary_backward, enter  reads x 4, du 1; writes dx 4                    9  (+ x, du 5)
    projection_gradient       reads x' 4                                      4
    collapse_forward          reads x 4, y 1; writes 1                        6
    collapse_backward         reads x 4, y 1, grad 1; writes dx 4, dy 1      11

Beside these a boundary moves 74 float32 coefficients a token forward and 139 backward, half a unit
at c = 768 in bfloat16, and every program reads the projections, 96 bytes a channel and stream, from
L2 once forward and once backward. A boundary makes 10 + 15 + 4 = 29 units, where a plain residual
with RMSNorm moves 4 + 4 = 8 (x, y in, x', u out; dx', du, x' in, dx out): 21 units extra, 51 GB in
a step of 24 boundaries, 65,536 tokens, c = 768 and bfloat16, or 17 ms at 3 TB/s: 12.9 % of such a
step by the reckoning whose published floor, 17 units or 41 GB, is 10.4 %. What is above the floor
is x' read once more for the gradient of the projections. All this is counted, not measured.
The backward pass mixes x' again from x and y instead of reading it: 15 units instead of 19.

Coefficients lie in planes, (k, T) with tokens innermost: a thread holds a token, so that all 16
numbers of its H_res sit in registers and every access is coalesced. Only for n = 4.

Axes: t token (a row of a block), n streams (senders), m streams (receivers), c channel, k
coefficients: n of H_pre, n of H_post, n * n of H_res.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mhc_model.streams.kernels.triton_sinkhorn import (
    limit_gradient,
    row_sums,
    sinkhorn_limit,
    zeros,
)

# Rows of `saved`: 24 of x' fn, 1 / RMS(x'), 1 / RMS(u), n of <u, x'_n>.
INVERSE, INVERSE_U, DOTS = tl.constexpr(24), tl.constexpr(25), tl.constexpr(26)


@triton.jit
def _load_planes(pointer, n: tl.constexpr, tokens, token, live):
    """n planes of (n, T) as a tuple of (t,) tensors."""
    planes = ()
    for k in tl.static_range(n):
        planes = planes + (tl.load(pointer + k * tokens + token, mask=live, other=0.0),)
    return planes


@triton.jit
def _store_planes(pointer, planes, n: tl.constexpr, tokens, token, live):
    for k in tl.static_range(n):
        tl.store(pointer + k * tokens + token, planes[k], mask=live)


@triton.jit
def _gated(res, gate, tokens, per_row, token, live):
    """H_res, the gate and (1 - g) I + g H_res, by torch.lerp's formula: exact at 0 and 1."""
    p = _load_planes(res, 16, tokens, token, live)
    g = tl.load(gate + token // per_row, mask=live, other=0.0)
    mixing = ()
    for i in tl.static_range(16):
        off = p[i] - (1.0 if i % 5 == 0 else 0.0)
        low = (1.0 if i % 5 == 0 else 0.0) + g * off
        mixing = mixing + (tl.where(g < 0.5, low, p[i] - off * (1.0 - g)),)
    return p, g, mixing


@triton.jit
def _load_streams(x, at, inside, C: tl.constexpr, POLICY: tl.constexpr):
    tiles = ()
    for i in tl.static_range(4):
        tile = tl.load(x + at + i * C, mask=inside, other=0.0, eviction_policy=POLICY)
        tiles = tiles + (tile.to(tl.float32),)
    return tiles


@triton.jit
def _store_streams(x, tiles, at, inside, C: tl.constexpr, POLICY: tl.constexpr):
    for i in tl.static_range(4):
        tile = tiles[i].to(x.dtype.element_ty)
        tl.store(x + at + i * C, tile, mask=inside, eviction_policy=POLICY)


@triton.jit
def _mix(old, y, mixing, post, dtype: tl.constexpr):
    """x'_m = sum_n mixing[n, m] x_n + post_m y, rounded to what is stored of it."""
    new = ()
    for j in tl.static_range(4):
        total = post[j][:, None] * y
        for i in tl.static_range(4):
            total += mixing[4 * i + j][:, None] * old[i]
        new = new + (total.to(dtype).to(tl.float32),)
    return new


@triton.jit
def _weighted(tiles, weights):
    """sum_n weights_n tiles_n."""
    total = weights[0][:, None] * tiles[0]
    for i in tl.static_range(1, 4):
        total += weights[i][:, None] * tiles[i]
    return total


@triton.jit
def _load_projection(fn, i: tl.constexpr, channel, column, C: tl.constexpr):
    """(c, 32) of fn for stream i; the last 8 columns are zero."""
    inside = (channel < C)[:, None] & (column < 24)[None, :]
    at = (i * C + channel)[:, None] * 24 + column[None, :]
    return tl.load(fn + at, mask=inside, other=0.0, eviction_policy="evict_last")


@triton.jit
def _project(v, phi, total, dtype: tl.constexpr):
    """total + v phi, good to 18 bits of phi or more, for v that was rounded to dtype."""
    if dtype == tl.float32:
        # Three products of the matrix units are as good as one in float32.
        return tl.dot(v, phi, total, input_precision="tf32x3")
    # v is exact in tf32, so that only phi comes in two parts. Not 16-bit operands, though the
    # units are faster with them: Triton's interpreter, which the tests run in, cannot do them.
    high = phi.to(tl.bfloat16).to(tl.float32)
    total = tl.dot(v, high, total, input_precision="tf32")
    return tl.dot(v, phi - high, total, input_precision="tf32")


@triton.jit
def boundary_forward(
    x,
    y,
    post,
    res,
    gate,
    fn,
    base,
    strength,
    new,
    un,
    pre_out,
    post_out,
    res_out,
    saved,
    tokens,
    per_row,
    eps,
    inverse_tau,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CROSS: tl.constexpr,
):
    """`leave` one sublayer and `enter` the next (CROSS), or only `enter`, where new is x."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = token < tokens
    row = token.to(tl.int64)[:, None] * C
    column = tl.arange(0, 32)
    if CROSS:
        before = _load_planes(post, 4, tokens, token, live)
        _, _, mixing = _gated(res, gate, tokens, per_row, token, live)

    projected = tl.zeros((BLOCK_T, 32), tl.float32)
    gram = zeros(tl.zeros((BLOCK_T,), tl.float32), 10)
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = live[:, None] & (channel < C)[None, :]
        at = row * 4 + channel[None, :]
        v = _load_streams(x, at, inside, C, "evict_first" if CROSS else "")
        if CROSS:
            out = tl.load(y + row + channel[None, :], inside, 0.0, eviction_policy="evict_first")
            v = _mix(v, out.to(tl.float32), mixing, before, new.dtype.element_ty)
            _store_streams(new, v, at, inside, C, "")
        for i in tl.static_range(4):
            phi = _load_projection(fn, i, channel, column, C)
            projected = _project(v[i], phi, projected, new.dtype.element_ty)
        sums = ()
        for i in tl.static_range(4):
            for j in tl.static_range(i, 4):
                sums = sums + (gram[i * (7 - i) // 2 + j] + tl.sum(v[i] * v[j], axis=1),)
        gram = sums

    # A thread needs all coefficients of its token: they change hands through memory.
    everywhere = column[None, :].to(tl.int64) * tokens + token[:, None]
    tl.store(saved + everywhere, projected, mask=live[:, None] & (column < 24)[None, :])
    tl.debug_barrier()
    h = _load_planes(saved, 24, tokens, token, live)
    inverse = tl.rsqrt((gram[0] + gram[4] + gram[7] + gram[9]) / (4 * C) + eps)
    raw = ()
    for k in tl.static_range(24):
        raw = raw + (h[k] * inverse * tl.load(strength + k) + tl.load(base + k),)
    pre, after, logits = (), (), ()
    for i in tl.static_range(4):
        pre = pre + (tl.sigmoid(raw[i]),)
        after = after + (2.0 * tl.sigmoid(raw[4 + i]),)
    for i in tl.static_range(16):
        logits = logits + (raw[8 + i] * inverse_tau,)
    # ||u||^2 from the products of the streams: no pass over u, which is not made yet.
    dots, square = (), tl.zeros_like(inverse)
    for i in tl.static_range(4):
        total = tl.zeros_like(inverse)
        for j in tl.static_range(4):
            total += pre[j] * gram[i * (7 - i) // 2 + j if i <= j else j * (7 - j) // 2 + i]
        dots = dots + (total,)
        square += total * pre[i]
    inverse_u = tl.rsqrt(tl.maximum(square, 0.0) / C + eps)
    _store_planes(pre_out, pre, 4, tokens, token, live)
    _store_planes(post_out, after, 4, tokens, token, live)
    _store_planes(res_out, sinkhorn_limit(logits), 16, tokens, token, live)
    _store_planes(saved + INVERSE * tokens, (inverse, inverse_u), 2, tokens, token, live)
    _store_planes(saved + DOTS * tokens, dots, 4, tokens, token, live)

    weights = ()
    for i in tl.static_range(4):
        weights = weights + (pre[i] * inverse_u,)
    # What is read now was written by other threads of this program.
    tl.debug_barrier()
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = live[:, None] & (channel < C)[None, :]
        v = _load_streams(new, row * 4 + channel[None, :], inside, C, "evict_first")
        u = _weighted(v, weights).to(un.dtype.element_ty)
        tl.store(un + row + channel[None, :], u, mask=inside, eviction_policy="evict_first")


@triton.jit
def boundary_backward(
    dnew,
    dun,
    dpost_out,
    dres_out,
    x,
    y,
    post,
    res,
    gate,
    fn,
    strength,
    pre_out,
    post_out,
    res_out,
    saved,
    dx,
    dy,
    dpost,
    dres,
    dgate,
    draw,
    tokens,
    per_row,
    inverse_tau,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CROSS: tl.constexpr,
):
    """Gradients for `boundary_forward`; draw (24, T) is that of the coefficients before sigmoids.

    u and its norm only take part through dots of the streams with du, which the first pass takes;
    the second multiplies out the gradient of the new streams and goes on to the old ones at once.
    """
    # The gradients of 16-bit streams have 8 or 11 bits, as tf32 has.
    PRECISION: tl.constexpr = "tf32x3" if x.dtype.element_ty == tl.float32 else "tf32"
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = token < tokens
    row = token.to(tl.int64)[:, None] * C
    column = tl.arange(0, 32)
    zero = tl.zeros((BLOCK_T,), tl.float32)
    if CROSS:
        before = _load_planes(post, 4, tokens, token, live)
        p, g, mixing = _gated(res, gate, tokens, per_row, token, live)

    s = zeros(zero, 4)
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = live[:, None] & (channel < C)[None, :]
        v = _load_streams(x, row * 4 + channel[None, :], inside, C, "")
        if CROSS:
            out = tl.load(y + row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
            v = _mix(v, out, mixing, before, x.dtype.element_ty)
        du = tl.load(dun + row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        sums = ()
        for i in tl.static_range(4):
            sums = sums + (s[i] + tl.sum(v[i] * du, axis=1),)
        s = sums

    pre = _load_planes(pre_out, 4, tokens, token, live)
    after = _load_planes(post_out, 4, tokens, token, live)
    dafter = _load_planes(dpost_out, 4, tokens, token, live)
    inverse = tl.load(saved + INVERSE * tokens + token, mask=live, other=0.0)
    inverse_u = tl.load(saved + INVERSE_U * tokens + token, mask=live, other=0.0)
    dots = _load_planes(saved + DOTS * tokens, 4, tokens, token, live)
    mean = (pre[0] * s[0] + pre[1] * s[1] + pre[2] * s[2] + pre[3] * s[3]) * inverse_u / C
    grads = ()
    for i in tl.static_range(4):
        dpre = inverse_u * (s[i] - mean * inverse_u * dots[i])
        grads = grads + (dpre * pre[i] * (1.0 - pre[i]),)
    for i in tl.static_range(4):
        grads = grads + (dafter[i] * after[i] * (1.0 - 0.5 * after[i]),)
    dlogits = limit_gradient(
        _load_planes(res_out, 16, tokens, token, live),
        _load_planes(dres_out, 16, tokens, token, live),
    )
    for i in tl.static_range(16):
        grads = grads + (dlogits[i] * inverse_tau,)
    h = _load_planes(saved, 24, tokens, token, live)
    radial = zero
    for k in tl.static_range(24):
        radial += grads[k] * tl.load(strength + k) * h[k]
    # d(1 / RMS) / dx = -x / RMS^3 / (n c).
    radial = radial * inverse * inverse * inverse * (-1.0 / (4 * C))
    _store_planes(draw, grads, 24, tokens, token, live)
    tl.debug_barrier()
    used = live[:, None] & (column < 24)[None, :]
    everywhere = column[None, :].to(tl.int64) * tokens + token[:, None]
    dprojected = tl.load(draw + everywhere, mask=used, other=0.0) * inverse[:, None]
    dprojected *= tl.load(strength + column, mask=column < 24, other=0.0)[None, :]

    # u / RMS(u) is sum_i pre_i x_i / RMS(u), and its gradient (dun - that * mean) / RMS(u).
    ratios = ()
    for i in tl.static_range(4):
        ratios = ratios + (-mean * inverse_u * pre[i],)
    products = zeros(zero, 20)
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = live[:, None] & (channel < C)[None, :]
        at = row * 4 + channel[None, :]
        old = _load_streams(x, at, inside, C, "evict_first")
        du = tl.load(dun + row + channel[None, :], inside, 0.0, eviction_policy="evict_first")
        if CROSS:
            out = tl.load(y + row + channel[None, :], inside, 0.0, eviction_policy="evict_first")
            out = out.to(tl.float32)
            v = _mix(old, out, mixing, before, x.dtype.element_ty)
            d = _load_streams(dnew, at, inside, C, "evict_first")
        else:
            v = old
        du = inverse_u[:, None] * (du.to(tl.float32) + _weighted(v, ratios))
        total = ()
        for i in tl.static_range(4):
            part = radial[:, None] * v[i] + pre[i][:, None] * du
            if CROSS:
                part += d[i]
            phi = tl.trans(_load_projection(fn, i, channel, column, C))
            total = total + (tl.dot(dprojected, phi, part, input_precision=PRECISION),)
        if CROSS:
            back, sums = (), ()
            for i in tl.static_range(4):
                back = back + (_weighted(total, mixing[4 * i : 4 * i + 4]),)
                for j in tl.static_range(4):
                    sums = sums + (products[4 * i + j] + tl.sum(old[i] * total[j], axis=1),)
            for j in tl.static_range(4):
                sums = sums + (products[16 + j] + tl.sum(out * total[j], axis=1),)
            products = sums
            _store_streams(dx, back, at, inside, C, "evict_first")
            back_y = _weighted(total, before).to(dy.dtype.element_ty)
            tl.store(dy + row + channel[None, :], back_y, inside, eviction_policy="evict_first")
        else:
            _store_streams(dx, total, at, inside, C, "evict_first")

    if CROSS:
        back, slope = (), zero
        for i in tl.static_range(16):
            back = back + (products[i] * g,)
            slope += products[i] * (p[i] - (1.0 if i % 5 == 0 else 0.0))
        _store_planes(dres, back, 16, tokens, token, live)
        _store_planes(dpost, products[16:20], 4, tokens, token, live)
        tl.store(dgate + token, slope, mask=live)


@triton.jit
def projection_gradient(
    x,
    draw,
    strength,
    saved,
    partial,
    tokens,
    per_split,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial[split] (n * c, 24) = x'^T dprojected over the tokens of a split; no copy of x'."""
    # The gradients of 16-bit streams have 8 or 11 bits, as tf32 has.
    PRECISION: tl.constexpr = "tf32x3" if x.dtype.element_ty == tl.float32 else "tf32"
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    column = tl.arange(0, 32)
    scale = tl.load(strength + column, mask=column < 24, other=0.0)[None, :]
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, tokens)
    total = tl.zeros((BLOCK_C, 32), tl.float32)
    for start in range(first, last, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        live = token < last
        inside = live[None, :] & (channel < 4 * C)[:, None]
        at = token.to(tl.int64)[None, :] * (4 * C) + channel[:, None]
        v = tl.load(x + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        used = live[:, None] & (column < 24)[None, :]
        d = tl.load(draw + column[None, :].to(tl.int64) * tokens + token[:, None], used, 0.0)
        inverse = tl.load(saved + INVERSE * tokens + token, mask=live, other=0.0)
        total = tl.dot(v, d * inverse[:, None] * scale, total, input_precision=PRECISION)
    at = (tl.program_id(1) * (4 * C) + channel)[:, None] * 24 + column[None, :]
    tl.store(partial + at, total, mask=(channel < 4 * C)[:, None] & (column < 24)[None, :])


@triton.jit
def _collapsing(mixing, post):
    """Weights of the streams and of y in the mean of the streams."""
    weights = ()
    rows = row_sums(mixing)
    for i in tl.static_range(4):
        weights = weights + (0.25 * rows[i],)
    return weights, 0.25 * ((post[0] + post[1]) + (post[2] + post[3]))


@triton.jit
def collapse_forward(
    x,
    y,
    post,
    res,
    gate,
    mean,
    tokens,
    per_row,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = token < tokens
    row = token.to(tl.int64)[:, None] * C
    _, _, mixing = _gated(res, gate, tokens, per_row, token, live)
    weights, share = _collapsing(mixing, _load_planes(post, 4, tokens, token, live))
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = live[:, None] & (channel < C)[None, :]
        at = row + channel[None, :]
        v = _load_streams(x, row * 4 + channel[None, :], inside, C, "evict_first")
        out = tl.load(y + at, mask=inside, other=0.0, eviction_policy="evict_first")
        total = _weighted(v, weights) + share[:, None] * out.to(tl.float32)
        tl.store(mean + at, total.to(mean.dtype.element_ty), mask=inside)


@triton.jit
def collapse_backward(
    dmean,
    x,
    y,
    post,
    res,
    gate,
    dx,
    dy,
    dpost,
    dres,
    dgate,
    tokens,
    per_row,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = token < tokens
    row = token.to(tl.int64)[:, None] * C
    p, g, mixing = _gated(res, gate, tokens, per_row, token, live)
    weights, share = _collapsing(mixing, _load_planes(post, 4, tokens, token, live))
    products = zeros(tl.zeros((BLOCK_T,), tl.float32), 5)
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = live[:, None] & (channel < C)[None, :]
        at = row + channel[None, :]
        v = _load_streams(x, row * 4 + channel[None, :], inside, C, "evict_first")
        out = tl.load(y + at, mask=inside, other=0.0, eviction_policy="evict_first")
        d = tl.load(dmean + at, mask=inside, other=0.0).to(tl.float32)
        back, sums = (), ()
        for i in tl.static_range(4):
            back = back + (weights[i][:, None] * d,)
            sums = sums + (products[i] + tl.sum(v[i] * d, axis=1),)
        products = sums + (products[4] + tl.sum(out.to(tl.float32) * d, axis=1),)
        _store_streams(dx, back, row * 4 + channel[None, :], inside, C, "evict_first")
        back_y = (share[:, None] * d).to(dy.dtype.element_ty)
        tl.store(dy + at, back_y, mask=inside, eviction_policy="evict_first")
    # Every entry of a row of the mixing weighs its stream alike.
    slope, rows, back, back_post = tl.zeros_like(g), row_sums(p), (), ()
    for i in tl.static_range(16):
        back = back + (0.25 * g * products[i // 4],)
    for i in tl.static_range(4):
        slope += 0.25 * products[i] * (rows[i] - 1.0)
        back_post = back_post + (0.25 * products[4],)
    _store_planes(dres, back, 16, tokens, token, live)
    _store_planes(dpost, back_post, 4, tokens, token, live)
    tl.store(dgate + token, slope, mask=live)
