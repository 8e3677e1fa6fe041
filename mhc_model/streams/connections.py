"""Manifold-constrained hyper-connections around one sublayer (arXiv:2512.24880, section 4).

Per token, with x~ = RMSNorm(vec(x)) over all n * c channels:

    H_pre  =     sigmoid(s_pre  x~ phi_pre  + b_pre)        (n,)   in [0, 1]
    H_post = 2 * sigmoid(s_post x~ phi_post + b_post)       (n,)   in [0, 2]
    H_res  = sinkhorn_knopp((s_res x~ phi_res + b_res) / tau)      (n, n) doubly stochastic
    y      = F(norm(sum_i H_pre_i x_i))
    x_j   <- sum_i ((1 - g) I + g H_res)_ij x_i + H_post_j y

This is the dynamic form with the projection `limit`. `MHCConfig` has others: another function in
place of sinkhorn_knopp (`projections.py`), H_res = I with nothing to learn, the static form, which
has the biases b alone, and unconstrained HC, where each of the three is s tanh(x~ phi) + b. In
the single-pass form a sublayer makes the H_pre with which the next one reads.

Orientation: H_res[i, j] is what stream i sends to stream j.
Axes: n streams (senders), m streams (receivers), c channel; `...` is (b, t) or flat tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhc_model.config import MHCConfig
from mhc_model.streams import kernels
from mhc_model.streams.projections import initial_logits, project, reset_projections


class Coefficients(NamedTuple):
    """What one sublayer does with the streams of each token, all float32."""

    # (..., n); from the Triton kernels without a gradient of its own. With `single_pass` the next
    # sublayer reads with it.
    pre: Tensor
    post: Tensor  # (..., n)
    res: Tensor  # (..., n, m), before the gate; doubly stochastic, unless the projection is `free`


class Parameters(NamedTuple):
    """What turns streams into coefficients; float32, or float64 if they are that."""

    fn: Tensor  # (n * c, k)
    base: Tensor  # (k,)
    strength: Tensor  # (k,)


def scale_columns(config: MHCConfig) -> Tensor:
    """(k,) int64: which of the strengths s_pre, s_post and s_res a column of `fn` has."""
    n = config.n_streams
    return torch.tensor([0] * n + [1] * n + [2] * config.n_res_logits)


class HyperConnection(nn.Module):
    """The mHC coefficients of one sublayer and their use on the streams.

    Parameters carry the names of DeepSeek-V4's published modules and stay float32:
    `fn` (n * c, k) holds phi_pre, phi_post and phi_res side by side, `base` (k,) the biases in the
    same order, `scale` (3,) the strengths s_pre, s_post, s_res. k = 2n + n * n, or 2n + n! where
    H_res is a mixture of permutations. Where H_res is I, k = 2n and `scale` is (2,). The static
    form has `base` alone.
    """

    columns: Tensor
    fn: nn.Parameter | None
    scale: nn.Parameter | None

    def __init__(
        self,
        config: MHCConfig,
        d_model: int,
        sublayer: int,
        norm_eps: float,
        normalises: bool = True,
    ) -> None:
        """Parameters at their initial values.

        Args:
            config: streams and presets.
            d_model: c.
            sublayer: index of the sublayer, from 0.
            norm_eps: of every RMSNorm here.
            normalises: what the sublayer reads comes with its RMSNorm (without weight); false gives
                the sum itself, for a norm of another kind.
        """
        super().__init__()
        self.config = config
        self.normalises = normalises
        self.sublayer = sublayer
        self._norm_eps = norm_eps
        k = 2 * config.n_streams + config.n_res_logits
        self.fn = self.scale = None
        if config.dynamic:
            self.fn = nn.Parameter(torch.empty(config.n_streams * d_model, k))
        self.base = nn.Parameter(torch.empty(k))
        if config.dynamic:
            self.scale = nn.Parameter(torch.empty(3 if config.mixes else 2))
        self.register_buffer("columns", scale_columns(config), persistent=False)
        self.reset_parameters()

    @property
    def norm_eps(self) -> float:
        # A product: with dynamic shapes the compiler would otherwise find the number first inside
        # an autograd function, and then not outside.
        return self._norm_eps * 1.0

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initial values of the preset; only `fn` can be random."""
        self.base.copy_(self.initial_base().to(self.base.device))
        if self.fn is not None and self.scale is not None:
            reset_projections(self.fn, self.scale, self.config, generator)

    def initial_base(self) -> Tensor:
        """(k,) float32: b_pre, b_post and b_res at init."""
        config, n = self.config, self.config.n_streams
        # H_pre prefers another stream in each sublayer: with equal H_pre and equal streams nothing
        # would ever tell the streams apart, and no gradient would reach H_res.
        pre = torch.full((n,), config.pre_others)
        reader = self.sublayer + config.single_pass
        pre[reader % n if config.pre_rotates else 0] = config.pre_own
        post = torch.zeros(n)  # 2 * sigmoid(0) = 1
        if not config.constrained:
            pre, post = torch.sigmoid(pre), torch.ones(n)  # themselves
        return torch.cat([pre, post, initial_logits(config)])

    @torch.no_grad()
    def initial_res(self) -> Tensor:
        """(n, n) float32: H_res at init where the projections are zero."""
        return project(self.initial_base()[2 * self.config.n_streams :], self.config)

    def get_connection_matrix(self, x: Tensor | None = None) -> Tensor:
        """H_res before the gate, differentiable: entry (i, j) is what stream i sends to stream j.

        Args:
            x: (b, t, n, c) streams; None gives the matrix of the biases alone.

        Returns:
            (b, t, n, n) float32, or (n, n) without streams.
        """
        if x is None:
            logits = kernels.precise(self.base)[2 * self.config.n_streams :]
            return project(logits, self.config)
        return self.enter(x)[1].res

    def enter(self, x: Tensor, handed: Tensor | None = None) -> tuple[Tensor, Coefficients]:
        """What the sublayer reads.

        Args:
            x: (..., n, c) streams, any floating dtype; the coefficients are computed in float32.
            handed: (..., n) with `single_pass`: the H_pre made at the sublayer before; None is the
                first sublayer, which reads stream 0.

        Returns:
            norm(sum_i H_pre_i x_i), (..., c) of the dtype of x, and the coefficients. The norm is
            left out without `normalises`.
        """
        with torch.autocast(x.device.type, enabled=False):
            x, lead = _tokens(x, 2), x.shape[:-2]
            if kernels.takes_triton(x, self.config, self.normalises):
                parts = (*self._parameters_of(), self.norm_eps, self.config.tau)
                return _entered(kernels.library.enter(x[:, None], *parts), lead)
            return self._arrive(x, lead, handed)

    def start(self, e: Tensor, stream_embedding: Tensor) -> tuple[Tensor, Tensor, Coefficients]:
        """Makes the streams and enters the first sublayer.

        Args:
            e: (..., c) token embeddings; stream i starts as e + stream_embedding[i].
            stream_embedding: (n, c).

        Returns:
            The streams (..., n, c) of the dtype of e, then what `enter` gives.
        """
        lead = e.shape[:-1]
        with torch.autocast(e.device.type, enabled=False):
            if kernels.takes_triton(e, self.config, self.normalises):
                x = e[..., None, :] + stream_embedding.to(e.dtype)
                return x, *self.enter(x)
            if not self._is_fused:
                x = _tokens(e, 1)[:, None] + stream_embedding.to(e.dtype)
                return _unflatten(x, lead), *self._arrive(x, lead)
            parameters = self._parameters_of()
            x, entry = kernels.start(_tokens(e, 1), stream_embedding, *parameters, self.norm_eps)
            return _unflatten(x, lead), *self._finish(entry, lead)

    def leave(self, x: Tensor, y: Tensor, coefficients: Coefficients, gate: Tensor) -> Tensor:
        """The streams after the sublayer: x_j <- sum_i H_res'_ij x_i + H_post_j y.

        Args:
            x: (..., n, c) streams before the sublayer.
            y: (..., c) output of the sublayer.
            coefficients: of the same tokens and this sublayer.
            gate: in [0, 1], of the first of the leading dimensions, or all of them; 0 gives
                exactly the identity mixing.

        Returns:
            (..., n, c), dtype of x.
        """
        with torch.autocast(x.device.type, enabled=False):
            departure = self._departure(x, y, coefficients, gate)
            return _unflatten(kernels.leave(*departure), x.shape[:-2])

    def collapse(
        self,
        x: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        gate: Tensor,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The streams after the last sublayer as one, (..., c); arguments as in `leave`.

        With `collapse: mean` their mean, not their sum: at init the streams are copies and their
        mean is the plain model. With `learned` what `head` makes of them, (..., n, c) -> (..., c);
        in the single-pass form there is none, and the last H_pre is left to read them with.
        """
        if self.config.collapse == "learned":
            new = self.leave(x, y, coefficients, gate)
            if head is not None:
                return head(new)
            read = kernels.read(_tokens(new, 2), _tokens(coefficients.pre, 1))
            return _unflatten(read, x.shape[:-2])
        with torch.autocast(x.device.type, enabled=False):
            if kernels.takes_triton(x, self.config, self.normalises):
                departure = _triton_departure(x, y, coefficients, gate)
                return kernels.library.collapse(*departure).view_as(y)
            return kernels.collapse(*self._departure(x, y, coefficients, gate)).view_as(y)

    def cross(
        self, x: Tensor, y: Tensor, previous: Coefficients, gate: Tensor
    ) -> tuple[Tensor, Tensor, Coefficients]:
        """`leave` the sublayer before this one, whose coefficients and gate are given, and `enter`.

        Returns:
            The streams between the two, then what `enter` gives.
        """
        lead = x.shape[:-2]
        with torch.autocast(x.device.type, enabled=False):
            if kernels.takes_triton(x, self.config, self.normalises):
                parts = (*self._parameters_of(), self.norm_eps, self.config.tau)
                rows = _triton_departure(x, y, previous, gate)
                new, entered = kernels.library.cross(*rows, *parts)
                return new.view_as(x), *_entered(entered, lead)
            departure = self._departure(x, y, previous, gate)
            if self._is_fused:
                new, entry = kernels.cross(*departure, *self._parameters_of(), self.norm_eps)
                return _unflatten(new, lead), *self._finish(entry, lead)
            new = kernels.leave(*departure)
            return _unflatten(new, lead), *self._arrive(new, lead, previous.pre)

    def forward(
        self,
        x: Tensor,
        sublayer: Callable[[Tensor], Tensor] | None = None,
        gate: Tensor | None = None,
        handed: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Coefficients]:
        """One whole sublayer with its residual, for models of one's own; or what one reads.

        Args:
            x: (b, t, n, c) streams.
            sublayer: maps (b, t, c), already normalised, to (b, t, c). None gives what `enter`
                gives: so the decoder calls a connection that has hooks.
            gate: (b,) in [0, 1]; None is 1, the full H_res.
            handed: (b, t, n) with `single_pass`, as in `enter`.

        Returns:
            (b, t, n, c), or what the sublayer reads (b, t, c) and the coefficients.
        """
        if sublayer is None:
            return self.enter(x, handed)
        shape, lead, x = x.shape, x.shape[:-2], _tokens(x, 2)
        u, (_, post, res) = self.enter(x, None if handed is None else _tokens(handed, 1))
        y = _tokens(sublayer(_unflatten(u, lead)), 1)
        if gate is not None:
            res = _tokens(gated(_unflatten(res, lead), gate), 2)
        with torch.autocast(x.device.type, enabled=False):
            return kernels.leave(x, y, post, res if self.config.mixes else None).view(shape)

    @property
    def _is_fused(self) -> bool:
        """Whether a boundary is one function with a gradient by hand; the others are for controls
        and comparisons, and leave more of it to autograd."""
        return self.config.dynamic and self.config.constrained and not self.config.single_pass

    def _parameters_of(self) -> Parameters:
        """Of the dynamic form."""
        assert self.fn is not None
        assert self.scale is not None
        strength = kernels.precise(self.scale).index_select(0, self.columns)
        return Parameters(kernels.precise(self.fn), kernels.precise(self.base), strength)

    def _arrive(
        self, x: Tensor, lead: torch.Size, handed: Tensor | None = None
    ) -> tuple[Tensor, Coefficients]:
        """What `enter` gives of streams (T, n, c)."""
        if self._is_fused:
            entry = kernels.enter(x, *self._parameters_of(), self.norm_eps)
            return self._finish(entry, lead)
        made, post, logits = self._coefficients(x)
        pre = made
        if self.config.single_pass and handed is not None:
            pre = _tokens(handed, 1)
        elif self.config.single_pass:
            pre = torch.eye(x.shape[1], dtype=made.dtype, device=made.device)[0].expand_as(made)
        return self._finish(kernels.Entry(kernels.read(x, pre), made, post, logits), lead)

    def _coefficients(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H_pre, H_post and the logits of H_res, each (T, ...), of streams (T, n, c)."""
        n = self.config.n_streams
        if self.config.dynamic:
            fn, base, strength = self._parameters_of()
            projected = kernels.project(x, fn, self.norm_eps)
            if not self.config.constrained:
                projected = torch.tanh(projected)
            raw = torch.addcmul(base, projected, strength)
        else:
            raw = kernels.precise(self.base).expand(len(x), -1)
        pre, post, logits = raw.tensor_split((n, 2 * n), dim=1)
        if self.config.constrained:
            pre, post = torch.sigmoid(pre), 2.0 * torch.sigmoid(post)
        return pre, post, logits

    def _departure(
        self, x: Tensor, y: Tensor, coefficients: Coefficients, gate: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Arguments of `kernels.leave`: everything flat."""
        mixing = None
        if self.config.mixes:
            mixing = _tokens(gated(coefficients.res, gate), 2)
        return _tokens(x, 2), _tokens(y, 1), _tokens(coefficients.post, 1), mixing

    def _finish(self, entry: kernels.Entry, lead: torch.Size) -> tuple[Tensor, Coefficients]:
        coefficients = Coefficients(
            _unflatten(entry.pre, lead),
            _unflatten(entry.post, lead),
            _unflatten(project(entry.logits, self.config), lead),
        )
        u = entry.u
        if self.normalises:
            u = F.rms_norm(u, (u.shape[-1],), eps=self.norm_eps)
        return _unflatten(u, lead), coefficients


def gated(res: Tensor, gate: Tensor) -> Tensor:
    """(1 - g) I + g H_res; exactly I at 0 and H_res at 1.

    Args:
        res: (..., n, m).
        gate: of the first of the leading dimensions, or all of them.
    """
    identity = torch.eye(res.shape[-1], dtype=res.dtype, device=res.device)
    gate = gate.to(res.dtype).view(gate.shape + (1,) * (res.ndim - gate.ndim))
    # lerp is exact at both ends.
    return torch.lerp(identity, res, gate)


def _triton_departure(
    x: Tensor, y: Tensor, coefficients: Coefficients, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `kernels.library.cross`: every token is a row of one, with its own gate."""
    lead = x.shape[:-2]
    gate = gate.view(gate.shape + (1,) * (len(lead) - gate.ndim)).expand(lead).reshape(-1)
    _, post, res = coefficients
    rows = (_tokens(x, 2), _tokens(y, 1), _tokens(post, 1), _tokens(res, 2))
    x, y, post, res = (value[:, None] for value in rows)
    return x, y, post, res, gate


def _entered(entered: kernels.library.Entered, lead: torch.Size) -> tuple[Tensor, Coefficients]:
    un, *coefficients = (_unflatten(value[:, 0], lead) for value in entered)
    return un, Coefficients(*coefficients)


def _tokens(x: Tensor, inner: int) -> Tensor:
    """The leading dimensions in one, all but the last `inner`; contiguous."""
    if x.ndim != inner + 1:
        tokens = math.prod(x.shape[: x.ndim - inner])  # not -1: there may be none
        x = x.reshape(tokens, *x.shape[x.ndim - inner :])
    return x if x.is_contiguous() else x.contiguous()


def _unflatten(x: Tensor, lead: torch.Size) -> Tensor:
    return x if len(lead) == 1 else x.view(*lead, *x.shape[1:])
