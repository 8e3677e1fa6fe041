"""How fast PPO finds gates that are known: the values of configurations, side by side.

    python -m benchmarks.bandit configs/rl_published.yaml configs/rl_tuned.yaml

The task: right gates depend on the sign of one of 32 numbers that the policy sees; the chance of
reward 1 falls from 0.7 with the right gates to 0.3 with the opposite ones. No model answers: this
compares learners, with rewards as noisy as answers. The figure is the chance of a reward under the
trained policy's mean gates, on problems that it has not seen; 0.5 is where training starts and what
constant gates reach, 0.7 the most that can be had.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mhc_model.config import PolicyConfig
from mhc_model.settings import RaySettings, load_settings
from rl.config import RLConfig

WIDTH, LAYERS = 32, 8
RIGHT, SPREAD = 0.9, 0.4  # the gates where the number is positive; 1 - RIGHT where it is not


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", nargs="+", help="configurations of python -m rl")
    parser.add_argument("--rollouts", type=int, default=20_480, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--asynchronous", action="store_true", help="sample one update behind")
    options = parser.parse_args(argv)
    arguments = RaySettings(num_cpus=2).init_arguments()  # before Ray is imported
    import ray

    torch.set_num_threads(1)
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="r-") as directory:
        ray.init(**{**arguments, "_temp_dir": directory})
        for path in options.configs:
            config = load_settings(RLConfig, path)
            if options.asynchronous:
                config = config.model_copy(update={"asynchronous": True})
            chances = [train(config, options.rollouts, seed) for seed in range(options.seeds)]
            results[path] = chances
            middle, spread = statistics.mean(chances), statistics.pstdev(chances)
            print(f"{path}: {middle:.3f} ± {spread:.3f} over {len(chances)} seeds", flush=True)
        ray.shutdown()
    print(json.dumps({"options": vars(options), "chances": results}))
    return 0


def train(config: RLConfig, rollouts: int, seed: int) -> float:
    """The chance of a reward under the policy after that many rollouts."""
    from rl.ppo import build_algorithm, current_policy, train_iteration

    iterations = rollouts // config.rollouts
    config = config.model_copy(
        update={"envs": config.rollouts, "seed": seed, "iterations": iterations}
    )
    policy = PolicyConfig(
        action_space="per_layer",
        n_layers=LAYERS,
        observation_dim=WIDTH,
        hidden=config.ppo.hidden,
    )
    algorithm = build_algorithm(config, policy, BanditEnv(config.envs, seed))
    try:
        for iteration in range(1, iterations + 1):
            train_iteration(algorithm, seed, iteration)
        unseen = np.random.default_rng(1_000_000).normal(size=(1024, WIDTH)).astype(np.float32)
        with torch.no_grad():
            gates = current_policy(algorithm)(torch.from_numpy(unseen)).numpy()
    finally:
        algorithm.stop()
    return float(chance(unseen, gates).mean())


def chance(observations: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """(n, WIDTH) and (n, LAYERS) -> (n,) chance of a reward."""
    right = np.where(observations[:, :1] > 0, RIGHT, 1.0 - RIGHT)
    distance = np.abs(gates - right).mean(-1) / (2 * RIGHT - 1.0)
    return 0.5 + SPREAD * (0.5 - np.clip(distance, 0.0, 1.0))


class BanditEnv(VectorEnv):
    """N one-step episodes; steps as `rl.env.GateVectorEnv` does."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs = num_envs
        self.single_observation_space = Box(-np.inf, np.inf, (WIDTH,), np.float32)
        self.single_action_space = Box(0.0, 1.0, (LAYERS,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._random = np.random.default_rng(seed)
        self._terminal = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self._terminal = False
        return self._show(), {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        never = np.zeros(self.num_envs, dtype=bool)
        if self._terminal:
            self._terminal = False
            return self._show(), np.zeros(self.num_envs), never, never.copy(), {}
        self._terminal = True
        won = self._random.random(self.num_envs) < chance(self._shown, actions)
        return self._shown, won.astype(float), ~never, never, {}

    def _show(self) -> np.ndarray:
        self._shown = self._random.normal(size=(self.num_envs, WIDTH)).astype(np.float32)
        return self._shown


if __name__ == "__main__":
    raise SystemExit(main())
