"""One run: sweep fixed gates, train the policy, export it, compare it with the fixed gates.

runs/NAME/config.yaml      resolved configuration
runs/NAME/sweep.json       accuracy, tokens and reward under fixed gates, per-problem bound
runs/NAME/difficulty.json  solve rates of the problems, if a window of difficulty is asked for
runs/NAME/rollouts.jsonl   every episode
runs/NAME/metrics.jsonl    one row an iteration; also in tensorboard/
runs/NAME/state/           what resuming needs
runs/NAME/policy/          the exported policy
runs/NAME/summary.json     the policy beside the fixed gates, on the same problems
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from evals.problems import Problem
from mhc_model.config import ModelConfig, PolicyConfig
from mhc_model.errors import ConfigError, DataError
from mhc_model.files import parse_row, read_lines, read_own_rows, replace_json, replace_text
from mhc_model.policy import GatePolicy
from mhc_model.running import Heartbeat, doing, on_stop, ray_cluster
from rl.config import RLConfig
from rl.directory import check_directory, check_same_inputs, locked_run, save_config
from rl.env import GateVectorEnv
from rl.pool import ReplicaPool
from rl.ppo import (
    GatePPO,
    build_algorithm,
    current_policy,
    restore_state,
    save_state,
    train_iteration,
)
from rl.rollouts import Asker, RolloutLog
from rl.setup import prepare, problems_hash
from rl.tuning.difficulty import choose_problems
from rl.tuning.metrics import Clock, iteration_line, metrics_row, write_board
from rl.tuning.sweep import (
    POLICY,
    Outcomes,
    outcomes_of,
    summarize,
    summary_table,
    sweep_gates,
)

# A resumed run may change these; everything else would make it another run.
FREE_ON_RESUME = ("storage", "checkpoint", "iterations", "checkpoint_every", "pool", "ray")
KEEP_STATES = 2
ACTING = "acting.safetensors"  # weights under which the rollouts after a saved state are made


def run_tuning(config: RLConfig, ray_arguments: Mapping[str, Any]) -> Path:
    """Tunes the gates; gives the run's directory.

    Everything that can be refused is refused before the directory is made.

    Args:
        config: of the run.
        ray_arguments: keyword arguments of `ray.init`.

    Raises:
        MHCError: if checkpoint, problems or configuration do not allow it, or another process is
            at this run.
    """
    directory = Path(config.storage).resolve() / config.name
    with doing("loading the model and reading the problems"):
        checkpoint, problems, observations, policy = prepare(config)
    with locked_run(directory):
        state = read_state(directory, config, policy, problems)
        if is_complete(directory, config, state):
            print(f"run {config.name} is complete at iteration {state['iteration']}: {directory}")
            return directory
        with ray_cluster(ray, ray_arguments):
            prepare_directory(directory, config, policy, problems)
            on_stop(
                f"the same command goes on in {directory}: from its newest state, which is saved "
                f"every {config.checkpoint_every} iterations, and with all episodes of "
                f"rollouts.jsonl since"
            )
            with (
                Heartbeat(f"run {config.name}"),
                closing(ReplicaPool(checkpoint.path, config.pool)) as pool,
            ):
                pool.counters = pool.counters.going_on_from(state["pool"])
                asker = Asker(pool, checkpoint.tokenizer, config)
                model = checkpoint.model.config
                tune(directory, config, model, policy, asker, problems, observations, state)
    return directory


def tune(
    directory: Path,
    config: RLConfig,
    model: ModelConfig,
    policy: PolicyConfig,
    asker: Asker,
    problems: list[Problem],
    observations: Tensor,
    state: dict[str, Any],
) -> None:
    """Sweep, training, and the comparison of what came out; observations are (problems, c)."""
    print(
        f"run {config.name} in {directory}: {len(problems)} problems of {config.data}, "
        f"{policy.n_actions} actions ({policy.action_space}), {config.pool.replicas} replicas of "
        f"checkpoint {state['checkpoint'][:12]}",
        flush=True,
    )
    sample = problems[: config.sweep_problems]
    outcomes = load_or_sweep(directory, config, asker, sample, model, state["checkpoint"])
    chosen = choose_problems(directory, config, policy, asker, problems)
    log = RolloutLog(directory, state["position"])
    env = GateVectorEnv(
        config.envs,
        [problems[index] for index in chosen],
        observations[chosen],
        policy,
        asker,
        log,
        config.seed,
        state["position"],
    )
    algorithm = build_algorithm(config, policy, env)
    try:
        train(config, directory, algorithm, env, state)
    except BaseException:
        asker.pool.close()  # nobody wants what is under way
        raise
    finally:
        algorithm.stop()  # waits for rollouts under way, which the log keeps
        log.close()
    with torch.no_grad():
        gates = GatePolicy.load(directory / "policy").gates(observations[: len(sample)])
    outcomes[POLICY] = outcomes_of(asker, sample, gates)
    finish(directory, outcomes, asker.pool, state)


def read_state(
    directory: Path, config: RLConfig, policy: PolicyConfig, problems: Sequence[Problem]
) -> dict[str, Any]:
    """Checks that the directory is the same run's, if it is there; gives the saved state.

    Raises:
        ConfigError: if the directory belongs to a run with other settings, another checkpoint or
            other problems.
    """
    check_directory(directory, config, FREE_ON_RESUME, f"run {config.name}")
    states = saved_states(directory)
    state: dict[str, Any] = {
        "iteration": 0,
        "position": 0,
        "checkpoint": policy.checkpoint_hash,
        "problems": problems_hash(problems),
        "pool": {},
    }
    if states:
        saved = json.loads((states[-1] / "state.json").read_text(encoding="utf-8"))
        inputs = {name: state[name] for name in ("checkpoint", "problems")}
        check_same_inputs(saved, inputs, f"run {config.name}")
        state |= saved
    return state


def prepare_directory(
    directory: Path, config: RLConfig, policy: PolicyConfig, problems: Sequence[Problem]
) -> dict[str, Any]:
    """As `read_state`; then makes the directory this run's."""
    state = read_state(directory, config, policy, problems)
    save_config(directory, config)
    return state


def is_complete(directory: Path, config: RLConfig, state: dict[str, Any]) -> bool:
    """Whether the last iteration is done and compared with the fixed gates."""
    summary = directory / "summary.json"
    return (
        state["iteration"] >= config.iterations
        and summary.exists()
        and json.loads(summary.read_text(encoding="utf-8"))["rollouts"] == state["position"]
    )


def saved_states(directory: Path) -> list[Path]:
    """Whole saved states, the newest last."""
    found = directory.glob("state/iteration-*")
    return sorted(found, key=lambda path: int(path.name.removeprefix("iteration-")))


def load_or_sweep(
    directory: Path,
    config: RLConfig,
    asker: Asker,
    sample: list[Problem],
    model: ModelConfig,
    checkpoint: str,
) -> dict[str, Outcomes]:
    """Outcomes under fixed gates, measured once a run; again if the run, killed before its first
    saved state, was started anew on other weights or problems."""
    path = directory / "sweep.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    problems = problems_hash(sample)
    # Files of earlier versions do not say which problems.
    if (saved.get("checkpoint"), saved.get("problems", problems)) == (checkpoint, problems):
        return {label: Outcomes.read(own) for label, own in saved["outcomes"].items()}
    outcomes = sweep_gates(asker, sample, model, config.sweep)
    summary = summarize(outcomes)
    facts = {"checkpoint": checkpoint, "problems": problems}
    replace_json(path, {**facts, "summary": summary, "outcomes": _plain(outcomes)})
    print(f"fixed gates on training problems:\n{summary_table(summary)}", flush=True)
    return outcomes


def _plain(outcomes: Mapping[str, Outcomes]) -> dict[str, dict[str, Any]]:
    return {label: own._asdict() for label, own in outcomes.items()}


def train(
    config: RLConfig, directory: Path, algorithm: GatePPO, env: GateVectorEnv, state: dict[str, Any]
) -> None:
    """PPO iterations from the saved state to the last; `state` follows."""
    start, pool = state["iteration"], env.asker.pool
    if start:
        restore(config, directory, algorithm, start)
        print(f"resuming after iteration {start}, rollout {state['position']}", flush=True)
    path = directory / "metrics.jsonl"
    replace_text(path, "".join(f"{row}\n" for row in kept_rows(path, start)))
    board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)
    with path.open("a", encoding="utf-8") as file:
        clock = Clock(pool)
        for iteration in range(start + 1, config.iterations + 1):
            learner = train_iteration(algorithm, config.seed, iteration)
            rollouts = algorithm.sampler.last.rollouts
            row = metrics_row(iteration, rollouts, learner, clock.lap()) | pool.describe()
            file.write(json.dumps(row) + "\n")
            file.flush()
            write_board(board, row, iteration)
            print(iteration_line(config, row), flush=True)
            if iteration % config.checkpoint_every == 0 or iteration == config.iterations:
                position = iteration * config.rollouts  # what is under way is made again
                state |= {"iteration": iteration, "position": position, "pool": pool.describe()}
                save(config, directory, algorithm, state)
    board.close()


def restore(config: RLConfig, directory: Path, algorithm: GatePPO, iteration: int) -> None:
    """Loads the newest saved state; asynchronously, begins the rollouts that were under way."""
    saved = saved_states(directory)[-1]
    restore_state(algorithm, saved)
    if config.asynchronous and iteration < config.iterations:
        algorithm.sampler.resume(iteration + 1, load_file(saved / ACTING))


def save(config: RLConfig, directory: Path, algorithm: GatePPO, state: dict[str, Any]) -> None:
    """Exports the policy and saves the state; the state goes last, so resuming finds both.

    Raises:
        ConfigError: if a weight is no finite number; what was saved before stays.
    """
    policy = current_policy(algorithm)
    if not all(bool(weight.isfinite().all()) for weight in policy.state_dict().values()):
        raise ConfigError(
            f"iteration {state['iteration']}: the policy's weights are not finite; what was saved "
            f"before is whole; lower ppo.lr or ppo.epochs and give another name"
        )
    policy.save(directory / "policy")
    target = directory / "state" / f"iteration-{state['iteration']:06d}"
    shutil.rmtree(target, ignore_errors=True)

    def write(staging: Path) -> None:
        replace_json(staging / "state.json", state)
        if config.asynchronous:
            save_file(algorithm.sampler.acting_weights(), staging / ACTING)

    save_state(algorithm, target, write)
    for old in saved_states(directory)[:-KEEP_STATES]:
        shutil.rmtree(old)


def kept_rows(path: Path, iteration: int) -> list[str]:
    """Rows of the iterations that a resumed run does not do again.

    Raises:
        DataError: if one is missing or malformed.
    """
    rows = (read_lines(path) if path.exists() else [])[:iteration]
    for expected, row in enumerate(rows, start=1):
        try:
            found = parse_row(row.encode())["iteration"]
        except (DataError, KeyError, TypeError):
            found = None
        if found != expected:
            raise DataError(f"{path}, line {expected} is not iteration {expected}")
    if len(rows) < iteration:
        raise DataError(f"{path} has {len(rows)} iterations; the saved state has {iteration}")
    return rows


def finish(
    directory: Path, outcomes: Mapping[str, Outcomes], pool: ReplicaPool, state: dict[str, Any]
) -> None:
    """Writes summary.json and says how it went."""
    summary = summarize(outcomes)
    counters = pool.describe()
    replace_json(
        directory / "summary.json",
        {
            "summary": summary,
            "outcomes": _plain(outcomes),
            "pool": counters,
            "rollouts": state["position"],
            "checkpoint": state["checkpoint"],
        },
    )
    print("the policy beside fixed gates, on the training problems of the sweep:")
    print(summary_table(summary))
    rows = read_own_rows(directory / "metrics.jsonl")
    first, last = (row["reward"] for row in (rows[0], rows[-1]))
    print(
        f"{state['position']} rollouts, mean reward {first:.3f} in the first iteration and "
        f"{last:.3f} in the last, {counters['retried']} requests retried, {counters['lost']} lost; "
        f"policy in {directory / 'policy'}",
        flush=True,
    )
