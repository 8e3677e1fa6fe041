"""PPO with RLlib's new API stack, for episodes of one step.

In: an `RLConfig`, a `PolicyConfig` and a vector environment. Out: an algorithm that trains an
iteration at a time, its policy network, its saved state. May import rl.config, rl.env, rl.rollouts
and mhc_model.

    module.py     `GateModule`: the policy's network, a Beta distribution, a value net
    learner.py    `OneStepLearner`: advantages without RLlib's phantom steps
    sampler.py    `Sampler`: rollouts when PPO asks, or beside the learner's work
    algorithm.py  `GatePPO`: built, trained, saved and restored

States that were saved before this room was one name `rl.ppo.GatePPO` too: the class stays here.
"""

from rl.ppo.algorithm import (
    GatePPO,
    build_algorithm,
    current_policy,
    earlier_modules,
    restore_state,
    sample_timeout_s,
    save_state,
    train_iteration,
)
from rl.ppo.learner import OneStepAdvantages, OneStepLearner, standardise
from rl.ppo.module import GateBeta, GateModule
from rl.ppo.sampler import Sampled, Sampler

__all__ = [
    "GateBeta",
    "GateModule",
    "GatePPO",
    "OneStepAdvantages",
    "OneStepLearner",
    "Sampled",
    "Sampler",
    "build_algorithm",
    "current_policy",
    "earlier_modules",
    "restore_state",
    "sample_timeout_s",
    "save_state",
    "standardise",
    "train_iteration",
]
