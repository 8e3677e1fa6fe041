"""RLlib's PPO learner for episodes of one step.

RLlib lengthens every episode by a phantom step, for the value of the state after the last one, and
standardises advantages over all steps, phantoms included. In long episodes that is one step among
many. Here it would be every second one: their advantages, -V each, shift those of the real steps to
a mean of about +0.7 standard deviations (measured), which undoes the baseline. Nothing follows the
only step, so there is nothing to bootstrap: the phantoms go, and the advantage is reward - V.

Rollouts that were made beside the learner are of an older policy. Clipping against that one would
leave no room: the last update has used it up. So the ratio is to the policy with which the update
begins, and an importance weight makes up for who acted (the decoupled objective of Hilton, Cobbe
and Schulman, arXiv:2110.00641). Where both are the same policy the weight is 1.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner import (
    AddOneTsToEpisodesAndTruncate,
    GeneralAdvantageEstimation,
)
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

# Below this spread the advantages are the value net's noise, and are not blown up to 1. A single
# right answer among 256 has a spread of 0.06.
LEAST_SPREAD = 0.05
KL_WEIGHT = "kl_weight"
# A rollout counts this many times at most, however unlikely its gates were.
MOST_WEIGHT = 2.0


def standardise(advantages: Tensor) -> Tensor:
    """(n,) -> (n,) with mean 0 and, unless they hardly differ, standard deviation 1."""
    centred = advantages - advantages.mean()
    return centred / centred.square().mean().sqrt().clamp(min=LEAST_SPREAD)


class OneStepAdvantages(ConnectorV2):
    """Adds advantages (n,) and value targets (n,), the rewards, to the batch; makes the policy with
    which the update begins the one that ratios and KL refer to."""

    @torch.no_grad()
    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        columns, module = batch[DEFAULT_MODULE_ID], rl_module[DEFAULT_MODULE_ID]
        rewards = columns[Columns.REWARDS]
        advantages = standardise(rewards - module.compute_values(columns))
        inputs = module.forward_train(columns)[Columns.ACTION_DIST_INPUTS]
        now = module.get_train_action_dist_cls().from_logits(inputs)
        logp = now.logp(columns[Columns.ACTIONS])
        weights = (logp - columns[Columns.ACTION_LOGP]).exp().clamp(max=MOST_WEIGHT)
        columns[Columns.ACTION_LOGP] = logp
        columns[Columns.ACTION_DIST_INPUTS] = inputs
        columns[Postprocessing.VALUE_TARGETS] = rewards
        columns[Postprocessing.ADVANTAGES] = weights * advantages
        return batch


class OneStepLearner(PPOTorchLearner):
    """PPO without phantom steps, whose saved state includes the adapted KL weight."""

    def build(self) -> None:
        super().build()
        self._learner_connector.remove(AddOneTsToEpisodesAndTruncate)
        self._learner_connector.remove(GeneralAdvantageEstimation)
        self._learner_connector.append(OneStepAdvantages())

    def get_state(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """RLlib leaves the KL weight out, and a resumed run would start again from the first."""
        state = super().get_state(*arguments, **options)
        weight = self.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]
        return {**state, KL_WEIGHT: float(weight)}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if KL_WEIGHT in state:  # absent where RLlib sends weights only
            self.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID].data.fill_(state[KL_WEIGHT])
