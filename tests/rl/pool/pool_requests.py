"""Requests for the tests of this room."""

from __future__ import annotations

import torch

from mhc_model import Request, SamplingParams


def make_requests(count: int, max_tokens: int = 60) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    return [
        Request(
            torch.randint(0, 250, (5 + i % 7,), generator=generator).tolist(),
            gates=torch.rand(4, generator=generator),
            sampling=SamplingParams(max_tokens=max_tokens),
        )
        for i in range(count)
    ]
