"""Ways to choose gates that PPO is held against, each within the same number of rollouts.

In: a `Bench` of training problems with a budget. Out: one vector of gates, or a policy. May import
rl.env, rl.rollouts, evals and mhc_model.

    bench.py      `Bench`: problems, a way to ask them, a budget
    constant.py   the best of a grid, a search by cross-entropy
    reinforce.py  REINFORCE with PPO's network
    gradient.py   by gradient of the right answers, nothing generated
"""

from rl.baselines.bench import Bench
from rl.baselines.constant import best_of_grid, cross_entropy_search
from rl.baselines.gradient import AnswerLoss, tune_constant, tune_policy
from rl.baselines.reinforce import reinforce

__all__ = [
    "AnswerLoss",
    "Bench",
    "best_of_grid",
    "cross_entropy_search",
    "reinforce",
    "tune_constant",
    "tune_policy",
]
