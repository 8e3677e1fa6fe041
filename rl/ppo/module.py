"""The RLlib module: the exported policy's own network, a Beta distribution and a value net."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchDeterministic,
    TorchDistribution,
)
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy

# A sample that rounds to 0 or 1 would have a log-density of minus infinity.
EDGE = 1e-6


class GateBeta(TorchDistribution):
    """Independent Beta distributions, one a gate: bounded by construction, no clipping bias."""

    def _get_torch_distribution(self, alpha: Tensor, beta: Tensor) -> torch.distributions.Beta:
        return torch.distributions.Beta(alpha, beta, validate_args=False)

    def sample(self, *, sample_shape: Any = None) -> Tensor:
        return super().sample(sample_shape=sample_shape).clamp(EDGE, 1.0 - EDGE)

    def logp(self, value: Tensor, **kwargs: Any) -> Tensor:
        """(b, a) gates -> (b,)."""
        return super().logp(value.clamp(EDGE, 1.0 - EDGE), **kwargs).sum(-1)

    def entropy(self) -> Tensor:
        return super().entropy().sum(-1)

    def kl(self, other: GateBeta) -> Tensor:
        return super().kl(other).sum(-1)

    def to_deterministic(self) -> TorchDeterministic:
        return TorchDeterministic(loc=self._dist.mean)

    @staticmethod
    def required_input_dim(space: gymnasium.Space, **kwargs: Any) -> int:
        return 2 * int(space.shape[0])

    @classmethod
    def from_logits(cls, logits: Tensor, **kwargs: Any) -> GateBeta:
        """logits (b, 2a): alpha and beta side by side, as `GateModule` gives them."""
        alpha, beta = logits.chunk(2, dim=-1)
        return cls(alpha=alpha, beta=beta)


class GateModule(TorchRLModule, ValueFunctionAPI):
    """`model_config["policy"]` holds the fields of a PolicyConfig."""

    def setup(self) -> None:
        config = PolicyConfig(**self.model_config["policy"])
        self.policy = GatePolicy(config)
        layers: list[nn.Module] = [nn.LayerNorm(config.observation_dim)]
        width = config.observation_dim
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.Tanh()]
            width = hidden
        self.value = nn.Sequential(*layers, nn.Linear(width, 1))
        self.action_dist_cls = GateBeta

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        alpha, beta = self.policy.concentrations(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: torch.cat([alpha, beta], dim=-1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """(b,) expected reward of each observation."""
        return self.value(batch[Columns.OBS]).squeeze(-1)
