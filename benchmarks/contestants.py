"""The rows of the table `pair`: implementations of the residual path around the same sublayers.

Axes: b batch, t token, n streams (senders), m streams (receivers), c channel, s = (b n).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from benchmarks.streams import eager_streams, triton_available, with_eager_streams
from mhc_model.config import MHCConfig, ModelConfig
from mhc_model.decoder import Attend, Attention, rope_table
from mhc_model.decoder.layers import MLP, rms_norm
from mhc_model.streams import HyperConnection


class Contestant(NamedTuple):
    """One way through an attention and an mlp sublayer."""

    name: str
    run: Callable[[Tensor], Any]
    x: Tensor  # what `run` takes
    parameters: list[Tensor]
    grads: list[Tensor]  # of what `run` gives


class Bound(nn.Module):
    """Attention with its rotary table, so that it takes one argument as the mlp does."""

    def __init__(self, attention: Attention, attend: Attend) -> None:
        super().__init__()
        self.attention, self.attend = attention, attend

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, self.attend)


class Normed(nn.Module):
    """A sublayer with the RMSNorm of its input, for implementations that bring none."""

    def __init__(self, sublayer: nn.Module, eps: float) -> None:
        super().__init__()
        self.sublayer, self.eps = sublayer, eps

    def forward(self, x: Tensor) -> Tensor:
        return self.sublayer(rms_norm(x, self.eps))


class PlainPair(nn.Module):
    """x + F(norm(x)), twice."""

    def __init__(self, sublayers: list[nn.Module], eps: float) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(Normed(sublayer, eps) for sublayer in sublayers)

    def forward(self, x: Tensor) -> Tensor:
        for sublayer in self.sublayers:
            x = x + sublayer(x)
        return x


class OurPair(nn.Module):
    """Two hyper-connections with learned gates: enter, cross, leave.

    Only one of its two boundaries is a `cross`, as all are in the decoder: see `OurPairInside`.
    """

    def __init__(self, mhc: MHCConfig, sublayers: list[nn.Module], c: int, eps: float) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(sublayers)
        self.connections = nn.ModuleList(HyperConnection(mhc, c, k, eps) for k in range(2))
        self.gate_logits = nn.Parameter(torch.logit(torch.tensor([mhc.gate_init] * 2)))
        with torch.no_grad():
            for connection in self.connections:
                # Logits of H_res of spread one. At init it is zero, and the solver of the limit
                # would have less to do than after training.
                connection.fn.normal_(0.0, (mhc.n_streams * c) ** -0.5)
                connection.scale.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        (attention, mlp), (first, second) = self.sublayers, self.connections
        gates = torch.sigmoid(self.gate_logits).expand(x.shape[0], -1)
        u, coefficients = first.enter(x)
        x, u, coefficients = second.cross(x, attention(u), coefficients, gates[:, 0])
        return second.leave(x, mlp(u), coefficients, gates[:, 1])


class OurPairInside(nn.Module):
    """The same within a decoder: both boundaries are a `cross`, before each of the sublayers.

    What comes from the sublayer before, and what goes to the one after, is part of it: its output
    and coefficients have gradients too.
    """

    def __init__(self, pair: OurPair, x: Tensor) -> None:
        super().__init__()
        self.pair = pair
        u, before = pair.connections[0].enter(x)
        self.y = torch.randn_like(u).requires_grad_()
        self.before = type(before)(*(part.detach().requires_grad_() for part in before))
        self.before.pre.requires_grad_(False)  # has done its work in the sublayer before

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        (attention, mlp), (first, second) = self.pair.sublayers, self.pair.connections
        gates = torch.sigmoid(self.pair.gate_logits).expand(x.shape[0], -1)
        x, u, coefficients = first.cross(x, self.y, self.before, gates[:, 0])
        x, u, coefficients = second.cross(x, attention(u), coefficients, gates[:, 1])
        return x, mlp(u), coefficients.post, coefficients.res


class EagerConnection(nn.Module):
    """The published formulas one operation after another, nothing fused: the preset `plan`."""

    def __init__(self, mhc: MHCConfig, sublayer: nn.Module, c: int, eps: float) -> None:
        super().__init__()
        self.mhc, self.sublayer, self.eps = mhc, sublayer, eps
        n = mhc.n_streams
        start = HyperConnection(mhc, c, 0, eps)  # for the initial values
        for source, kind in ((start.fn, "phi"), (start.base, "b")):
            parts = source.detach().split((n, n, n * n), dim=-1)
            for name, part in zip(("pre", "post", "res"), parts, strict=True):
                self.register_parameter(f"{kind}_{name}", nn.Parameter(part.clone()))
        for name in ("pre", "post", "res"):
            self.register_parameter(f"s_{name}", nn.Parameter(torch.tensor(mhc.scale_init)))
        self.gate_logit = nn.Parameter(torch.logit(torch.tensor(mhc.gate_init)))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, t, n, c) -> (b, t, n, c)."""
        n, streams = self.mhc.n_streams, x.float()
        normed = rms_norm(rearrange(streams, "b t n c -> b t (n c)"), self.eps)
        pre = torch.sigmoid(self.s_pre * (normed @ self.phi_pre) + self.b_pre)
        post = 2.0 * torch.sigmoid(self.s_post * (normed @ self.phi_post) + self.b_post)
        logits = self.s_res * (normed @ self.phi_res) + self.b_res
        log_p = rearrange(logits, "b t (n m) -> b t n m", n=n) / self.mhc.tau
        for _ in range(self.mhc.sinkhorn_iters):
            log_p = log_p - torch.logsumexp(log_p, dim=-1, keepdim=True)
            log_p = log_p - torch.logsumexp(log_p, dim=-2, keepdim=True)
        gate = torch.sigmoid(self.gate_logit)
        mixing = (1.0 - gate) * torch.eye(n, device=x.device) + gate * log_p.exp()
        u = einsum(pre, streams, "b t n, b t n c -> b t c").to(x.dtype)
        y = self.sublayer(rms_norm(u, self.eps)).float()
        mixed = einsum(mixing, streams, "b t n m, b t n c -> b t m c")
        return (mixed + einsum(post, y, "b t n, b t c -> b t n c")).to(x.dtype)


class LucidrainsPair(nn.Module):
    """The package `hyper-connections`: its mHC, streams in the batch axis, (b n) t c."""

    def __init__(self, n: int, sublayers: list[nn.Module], c: int, eps: float) -> None:
        super().__init__()
        mhc = importlib.import_module("hyper_connections").mHC
        self.connections = nn.ModuleList(
            mhc(n, dim=c, layer_index=k, branch=Normed(sublayer, eps))
            for k, sublayer in enumerate(sublayers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for connection in self.connections:
            x = connection(x)
        return x


class LigerPair(nn.Module):
    """`LigerMHC` of the package liger-kernel: Triton kernels, dynamic, no gates."""

    def __init__(
        self, n: int, sublayers: list[nn.Module], c: int, eps: float, dtype: torch.dtype
    ) -> None:
        super().__init__()
        liger = importlib.import_module("liger_kernel.transformers.mhc").LigerMHC
        self.connections = nn.ModuleList(
            liger(
                Normed(sublayer, eps),
                hc=n,
                c=c,
                rms_eps=eps,
                phi_dtype=dtype,
                allow_fp32=dtype == torch.float32,
            )
            for sublayer in sublayers
        )

    def forward(self, x: Tensor) -> Tensor:
        for connection in self.connections:
            x = connection(x)
        return x


class Pairs:
    """Builds the contestants of the table `pair`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.dtype = getattr(torch, options.dtype)
        self.config = ModelConfig(
            n_heads=options.heads, d_model=options.width, max_seq_len=options.tokens
        )
        torch.manual_seed(0)
        turns = (part[None, None].to(self.device) for part in rope_table(self.config))
        attention, mlp = Attention(self.config, 0), MLP(self.config)
        self.sublayers = [
            part.to(self.device, self.dtype) for part in (Bound(attention, Attend(*turns)), mlp)
        ]

    def names(self) -> list[str]:
        names = ["plain", "ours", "ours-inside"]
        if triton_available(self.device):
            names += ["ours-eager", "ours-inside-eager"]
        names += ["plan", "hyper-connections"]
        if self.device.type == "cuda":
            names.append("liger")
        if self.options.compile:
            names += ["plain-compiled", "ours-compiled", "plan-compiled"]
        return names

    def build(self, name: str, sublayers: list[nn.Module] | None = None) -> Contestant:
        """The contestant of that name, around other sublayers if they are given."""
        sublayers = self.sublayers if sublayers is None else sublayers
        options, c, eps = self.options, self.config.d_model, self.config.norm_eps
        torch.manual_seed(1)
        kind = name.removesuffix("-compiled").removesuffix("-eager")
        mhc = MHCConfig.model_validate({"preset": "plan"}) if kind == "plan" else MHCConfig()
        n, pair = mhc.n_streams, None
        shape = (options.batch, options.tokens, n, c)
        if kind == "plain":
            pair, shape = PlainPair(sublayers, eps), (options.batch, options.tokens, c)
        elif kind in ("ours", "ours-inside"):
            pair = OurPair(mhc, sublayers, c, eps)
        elif kind == "plan":
            pair = nn.Sequential(*(EagerConnection(mhc, each, c, eps) for each in sublayers))
        elif kind == "hyper-connections":
            pair = LucidrainsPair(n, sublayers, c, eps)
            shape = (options.batch * n, options.tokens, c)
        elif kind == "liger":
            pair = LigerPair(n, sublayers, c, eps, self.dtype)
        else:
            raise SystemExit(f"--only {name!r}; known here: {', '.join(self.names())}")
        pair.to(self.device)
        x = torch.randn(shape, device=self.device, dtype=self.dtype).requires_grad_()
        wanted = list(pair.parameters())
        with eager_streams() if name.endswith("-eager") else contextlib.nullcontext():
            if kind == "ours-inside":
                pair = OurPairInside(pair, x)
                wanted += [pair.y, pair.before.post, pair.before.res]
            run: Callable[[Tensor], Any] = pair
            if name.endswith("-compiled"):
                run = torch.compile(pair, dynamic=False)
            grads = [torch.randn_like(part) for part in tensors_in(run(x))]
        if name.endswith("-eager"):
            run = with_eager_streams(run)
        return Contestant(name, run, x, wanted, grads)

    def build_all(self) -> list[Contestant]:
        """All that can be built here and run; the others are named in one line each."""
        contestants = []
        for name in self.options.only or self.names():
            try:
                contestant = self.build(name)
                forward_backward(contestant)
            except ImportError as error:
                print(f"{name}: left out, not installed ({error})")
            except Exception as error:
                if name not in ("hyper-connections", "liger"):
                    raise
                # Someone else's code, which may fail in its own ways on this machine.
                print(f"{name}: left out, {type(error).__name__}: {str(error)[:200]}")
            else:
                contestants.append(contestant)
        return contestants


def forward_backward(contestant: Contestant) -> None:
    wanted = [contestant.x, *contestant.parameters]
    torch.autograd.grad(tensors_in(contestant.run(contestant.x)), wanted, contestant.grads)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_in(part)]
