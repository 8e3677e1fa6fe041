"""The workers that train together, as far as the loop needs to know: rank, size, reductions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class ProcessGroup:
    """torch's default process group, or one process without any.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        device: where its tensors live.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, value: float) -> float:
        """Sum over all processes."""
        return self._reduce(value, dist.ReduceOp.SUM)

    def mean(self, value: float) -> float:
        """Mean over all processes."""
        return self.total(value) / self.size

    def maximum(self, value: float) -> float:
        """Maximum over all processes."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def from_first(self, value: int) -> int:
        """The value of rank 0 on all processes."""
        return int(self.total(value if self.is_first else 0))

    def _reduce(self, value: float, operation: dist.ReduceOp.RedOpType) -> float:
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return float(tensor)
