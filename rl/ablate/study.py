"""What all arms of an ablation share: model, problems, budget, and how each learns."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.problems import Problem, load_problems
from evals.tasks import prompt_tokens
from mhc_model.checkpoint import Checkpoint
from mhc_model.config import ModelConfig, PolicyConfig
from mhc_model.errors import ConfigError, DataError
from mhc_model.files import read_own_rows, replace_json
from mhc_model.gates import expand_gate_rows, expand_gates
from mhc_model.policy import GatePolicy, expand_actions
from rl.ablate.arms import (
    BEHAVIOUR,
    BEST_CONSTANT,
    CEM,
    GRADIENT,
    GRADIENT_CONTEXTUAL,
    KNOWN,
    LEARNED,
    PPO,
    RANDOM,
    REINFORCE,
    Arm,
    behaviour_arm,
    fixed_name,
    parse_arm,
)
from rl.ablate.config import AblateConfig
from rl.baselines import (
    AnswerLoss,
    Bench,
    best_of_grid,
    cross_entropy_search,
    reinforce,
    tune_constant,
    tune_policy,
)
from rl.config import RLConfig
from rl.rollouts import Asker, RolloutLog
from rl.setup import observe, policy_config, prepare
from rl.tuning import run_tuning

ARM, GATES, POLICY = "arm.json", "gates.json", "policy"


@dataclass
class Study:
    """Model, problems and arms of one ablation.

    Attributes:
        config: of the ablation.
        directory: of its results.
        checkpoint: the model that is steered.
        training: problems that arms learn from.
        held_out: problems that they are tested on.
        observations: (training, c) float32, what a contextual policy sees.
        known: right gates of the held-out problems, where they are known.
    """

    config: AblateConfig
    directory: Path
    checkpoint: Checkpoint
    training: list[Problem]
    held_out: list[Problem]
    observations: Tensor
    known: Tensor | None = None
    asker: Asker | None = field(default=None, repr=False)

    @classmethod
    def prepare(cls, config: AblateConfig) -> Study:
        """Loads everything; what can be refused is refused here.

        Raises:
            MHCError: if checkpoint, problems or configuration do not allow it.
        """
        checkpoint, training, observations, _ = prepare(config)
        _check_behaviours(config, checkpoint.model.config)
        held_out = load_problems(config.data, "test", config.test_problems)
        shared = {problem.question for problem in training} & {p.question for p in held_out}
        if shared:
            raise DataError(
                f"{len(shared)} held-out questions are also training questions, such as "
                f"{min(shared)!r}; give data with disjoint splits train and test"
            )
        observe(config, checkpoint, held_out)  # refuses prompts that leave no room to answer
        return cls(
            config=config,
            directory=Path(config.storage).resolve() / config.name,
            checkpoint=checkpoint,
            training=training,
            held_out=held_out,
            observations=observations.cpu(),
            known=_read_known(config, held_out, checkpoint),
        )

    def arms(self) -> list[Arm]:
        """All of them, in the order of the tables: given ones, then those that learn."""
        config = self.config
        arms = [Arm(name, name, "global") for name in (LEARNED, *map(fixed_name, config.grid))]
        for name in self.checkpoint.model.config.behaviours:
            arms.append(Arm(behaviour_arm(name), BEHAVIOUR, "global"))
        if self.known is not None:
            arms.append(Arm(KNOWN, KNOWN, "global"))
        for name in config.arms:
            method, space = parse_arm(name, config.action_space)
            if method != BEHAVIOUR:  # those are there
                arms += [Arm(name, method, space, seed) for seed in config.seeds]
        return arms

    def path(self, arm: Arm) -> Path:
        """Directory of an arm."""
        return self.directory / "arms" / arm.directory

    def is_learned(self, arm: Arm) -> bool:
        """Whether what the arm learns is there, or it learns nothing."""
        return arm.seed is None or arm.method == RANDOM or (self.path(arm) / ARM).exists()

    def learn(self, arm: Arm, ray_arguments: Mapping[str, Any]) -> None:
        """Lets an arm learn and keeps what it found; PPO starts Ray itself, with these arguments,
        the others use `asker`."""
        path, started = self.path(arm), time.perf_counter()
        path.mkdir(parents=True, exist_ok=True)
        found, facts = self._learners()[arm.method](arm, ray_arguments)
        if isinstance(found, GatePolicy):
            found.save(path / POLICY)
        elif found.ndim == 2:  # prompt and answer apart
            replace_json(path / GATES, dict(zip(("prompt", "answer"), found.tolist(), strict=True)))
        else:
            replace_json(path / GATES, found.tolist())
        seconds = round(time.perf_counter() - started, 1)
        replace_json(path / ARM, {"arm": arm.name, "seed": arm.seed, "seconds": seconds, **facts})

    def policy(self, arm: Arm) -> PolicyConfig:
        """What the arm sets."""
        return policy_config(self._rl_config(arm), self.checkpoint)

    @torch.no_grad()
    def gates(self, arm: Arm) -> Tensor | None:
        """(held_out, 2L) gates that the arm chooses, or (held_out, 2, 2L), those of prompt and
        answer; None for the learned ones."""
        count, model = len(self.held_out), self.checkpoint.model.config
        if arm.method == LEARNED:
            return None
        if arm.method == KNOWN:
            return self.known
        if arm.method == RANDOM:
            generator = torch.Generator().manual_seed(self.config.seed + (arm.seed or 0))
            policy = self.policy(arm)
            return expand_actions(torch.rand(count, policy.n_actions, generator=generator), policy)
        if arm.method == BEHAVIOUR:
            return expand_gate_rows(arm.name.removeprefix(f"{BEHAVIOUR}:"), count, model)
        if arm.seed is None:
            return expand_gate_rows(float(arm.name.removeprefix("g=")), count, model)
        if (self.path(arm) / POLICY).exists():
            tokenizer = self.checkpoint.tokenizer
            prompts = [prompt_tokens(tokenizer, problem) for problem in self.held_out]
            policy = GatePolicy.load(self.path(arm) / POLICY)
            return policy.gates_for_prompts(self.checkpoint.model, prompts)
        return expand_gate_rows(json.loads((self.path(arm) / GATES).read_text()), count, model)

    def rollouts(self, arm: Arm) -> Path:
        """The file of the arm's training rollouts."""
        if arm.method == PPO:
            return self.directory / "runs" / arm.directory / "rollouts.jsonl"
        return self.path(arm) / "rollouts.jsonl"

    def _learners(self) -> dict[str, Any]:
        return {
            PPO: self._ppo,
            BEST_CONSTANT: self._on_bench,
            CEM: self._on_bench,
            REINFORCE: self._on_bench,
            GRADIENT: self._by_gradient,
            GRADIENT_CONTEXTUAL: self._by_gradient,
        }

    def _rl_config(self, arm: Arm) -> RLConfig:
        """The run of `python -m rl` that PPO's arm is; its sweep would only repeat other arms."""
        values = {name: getattr(self.config, name) for name in RLConfig.model_fields}
        return RLConfig(
            **{
                **values,
                "name": arm.directory,
                "storage": str(self.directory / "runs"),
                "action_space": arm.space,
                "seed": arm.seed or 0,
                "sweep": (),
                "sweep_problems": 1,
            }
        )

    def _ppo(self, arm: Arm, ray_arguments: Mapping[str, Any]) -> tuple[GatePolicy, dict[str, Any]]:
        path = run_tuning(self._rl_config(arm), ray_arguments)
        rows = read_own_rows(path / "metrics.jsonl")
        facts = {
            "rollouts": sum(row["rollouts"] for row in rows),
            "rewards": [row["reward"] for row in rows],
        }
        return GatePolicy.load(path / POLICY), facts

    def _on_bench(
        self, arm: Arm, _: Mapping[str, Any]
    ) -> tuple[GatePolicy | Tensor, dict[str, Any]]:
        config = self.config
        if self.asker is None:
            raise RuntimeError("arms that ask the model need an asker")
        log = RolloutLog(self.path(arm), 0)
        own_seed = config.model_copy(update={"seed": arm.seed or 0})  # of sampled answers
        bench = Bench(
            Asker(self.asker.pool, self.asker.tokenizer, own_seed),
            self.training,
            self.observations,
            self.policy(arm),
            config.budget,
            config.rollouts,
            arm.seed or 0,
            log,
        )
        try:
            if arm.method == BEST_CONSTANT:
                candidates = constants(config, self.checkpoint.model.config, arm.space)
                found: GatePolicy | Tensor = best_of_grid(bench, candidates)
            elif arm.method == CEM:
                search = config.search
                action = cross_entropy_search(bench, search.candidates, search.elite)
                found = expand_actions(action[None], bench.policy)[0]
            else:
                own = config.reinforce
                found = reinforce(bench, own.lr, own.batch, own.entropy)
        finally:
            log.close()
        return found, {"rollouts": bench.used, "rewards": bench.history}

    def _by_gradient(
        self, arm: Arm, _: Mapping[str, Any]
    ) -> tuple[GatePolicy | Tensor, dict[str, Any]]:
        own, policy = self.config.gradient, self.policy(arm)
        budget = self.config.budget if own.budget is None else own.budget
        loss = AnswerLoss(self.checkpoint.model, self.checkpoint.tokenizer, self.training)
        seed = arm.seed or 0
        found: GatePolicy | Tensor
        if arm.method == GRADIENT:
            action, losses = tune_constant(loss, policy, budget, own.batch, own.lr, seed)
            found = expand_actions(action[None], policy)[0]
        else:
            found, losses = tune_policy(
                loss, policy, self.observations, budget, own.batch, own.policy_lr, seed
            )
        return found, {"rollouts": 0, "sequences": len(losses) * own.batch, "losses": losses}


def constants(config: AblateConfig, model: ModelConfig, space: str) -> list[Tensor]:
    """What the best constant is chosen from: the grid, and what represents each behaviour.

    Returns:
        (2L,) gates each, no two alike; with the action space `prompt_and_answer` (2, 2L), all
        pairs of them.
    """
    rows = [expand_gates(gate, model.n_layers) for gate in config.grid]
    for behaviour in model.behaviours.values():
        row = expand_gates(behaviour.representative, model.n_layers)
        if not any(row.equal(other) for other in rows):
            rows.append(row)
    if space == "prompt_and_answer":
        return [torch.stack(pair) for pair in itertools.product(rows, repeat=2)]
    return rows


def _check_behaviours(config: AblateConfig, model: ModelConfig) -> None:
    """What only the model can tell.

    Raises:
        ConfigError: naming what is allowed.
    """
    there = [behaviour_arm(name) for name in model.behaviours]
    for name in (*config.arms, *config.against):
        if name.startswith(f"{BEHAVIOUR}:") and name not in there:
            raise ConfigError(
                f"{name!r} is no behaviour of {config.checkpoint}, which has: "
                f"{', '.join(there) or 'none'}"
            )
    for arm in config.arms:
        method, space = parse_arm(arm, config.action_space)
        count = len(constants(config, model, space)) if method == BEST_CONSTANT else 0
        if config.budget < count:
            raise ConfigError(
                f"the budget of {config.budget} rollouts does not cover the {count} constants "
                f"that arm {arm!r} chooses from"
            )


def _read_known(
    config: AblateConfig, problems: Sequence[Problem], checkpoint: Checkpoint
) -> Tensor | None:
    path, model = config.known, checkpoint.model
    if path is None:
        return None
    learned = model.learned_gates().detach()
    try:
        gates = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = [expand_gate_rows(gates[p.id], 1, model.config, learned) for p in problems]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"known gates {path} cannot be read: {error}") from None
    except KeyError as error:
        raise DataError(f"known gates {path} lack the held-out problem {error}") from None
    phased = any(row is not None and row.ndim == 3 for row in rows)
    if phased and config.wants_likelihood:
        raise ConfigError(
            f"known gates {path} differ between prompt and answer; the likelihood (reward, or "
            f"log_both) is scored under those of the prompt alone"
        )
    whole = [learned[None] if row is None else row for row in rows]
    if phased:
        whole = [row if row.ndim == 3 else torch.stack([row, row], dim=1) for row in whole]
    return torch.cat(whole)
