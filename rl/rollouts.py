"""Rollouts: what was asked, with which gates, what came back, and the file that keeps them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from evals.problems import Problem
from evals.tasks import STOP_STRINGS, prompt_tokens, score
from mhc_model.engine import Request, SamplingParams
from mhc_model.errors import DataError
from mhc_model.files import replace_bytes, split_lines
from mhc_model.tokenizer import Tokenizer
from rl.config import RLConfig
from rl.pool import LocalPool, ReplicaPool, Result

ROLLOUTS, SUPERSEDED = "rollouts.jsonl", "rollouts.superseded.jsonl"


@dataclass(frozen=True)
class Rollout:
    """One episode.

    Attributes:
        index: position in the run's sequence of episodes; unique in rollouts.jsonl.
        iteration: PPO iteration that learns from it.
        problem: id of the problem.
        gates: the 2L gates that the model ran with.
        completion: the answer, the first one where there are several.
        finish_reason: the engine's, of the first answer.
        tokens: generated tokens of all answers.
        reward: share of the answers that are right.
        replica: which one answered.
        attempts: 1, or more if replicas died on the way.
        others: the further answers.
        policy_version: updates that the policy which chose the gates had had.
    """

    index: int
    iteration: int
    problem: str
    gates: tuple[float, ...]
    completion: str
    finish_reason: str
    tokens: int
    reward: float
    replica: int
    attempts: int
    others: tuple[str, ...] = ()
    policy_version: int = 0


class Asker:
    """Asks the pool problems under given gates and scores the answers."""

    def __init__(
        self, pool: ReplicaPool | LocalPool, tokenizer: Tokenizer, config: RLConfig
    ) -> None:
        self.pool = pool
        self.tokenizer = tokenizer
        self.config = config

    def ask(
        self,
        problems: Sequence[Problem],
        gates: Tensor | None,
        first_index: int = 0,
        iteration: int = 0,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """One pool call for all problems.

        Args:
            problems: n of them; the same one may occur several times.
            gates: (n, 2L) in [0, 1], one row a problem, or None for the learned gates.
            first_index: index of the first rollout; sampled answers draw from it and the seed.
            iteration: noted in the rollouts.
            policy_version: likewise.
        """
        # Numbers, not rows of the tensor: a view would travel with all of its tensor.
        rows = [None] * len(problems) if gates is None else gates.tolist()
        requests = [
            self._request(problem, row, first_index + position)
            for position, (problem, row) in enumerate(zip(problems, rows, strict=True))
        ]
        results, samples = self.pool.run(requests), self.config.samples
        return [
            self._rollout(
                problem,
                results[position * samples : (position + 1) * samples],
                {
                    "index": first_index + position,
                    "iteration": iteration,
                    "policy_version": policy_version,
                },
            )
            for position, problem in enumerate(problems)
        ]

    def _request(self, problem: Problem, gates: list[float] | None, index: int) -> Request:
        sampling = SamplingParams(
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            seed=sampling_seed(self.config.seed, index),
            stop=STOP_STRINGS,
        )
        prompt = prompt_tokens(self.tokenizer, problem)
        return Request(prompt, gates, sampling, n=self.config.samples)

    def _rollout(
        self, problem: Problem, results: Sequence[Result], place: dict[str, int]
    ) -> Rollout:
        texts = [result.completion.text or "" for result in results]
        right = [getattr(score(text, problem), self.config.reward) for text in texts]
        first = results[0]
        return Rollout(
            **place,
            problem=problem.id,
            gates=first.completion.gates or (),
            completion=texts[0],
            finish_reason=first.completion.finish_reason,
            tokens=sum(len(result.completion.tokens) for result in results),
            reward=sum(right) / len(right),
            replica=first.replica,
            attempts=first.attempts,
            others=tuple(texts[1:]),
        )


def sampling_seed(seed: int, index: int) -> int:
    """Seed of a rollout's sampled answers, in [0, 2**32); another run seed gives others."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


class RolloutLog:
    """rollouts.jsonl: one line an episode, added only.

    A resumed run does again what came after its last saved state. Those earlier lines go to
    rollouts.superseded.jsonl, so no line is lost and every index occurs once in rollouts.jsonl.
    """

    def __init__(self, directory: Path, resume_at: int) -> None:
        """Opens the log of a run that goes on with the rollout `resume_at`.

        Raises:
            DataError: if lines before `resume_at` are missing or malformed.
        """
        path = directory / ROLLOUTS
        # Bytes: a kill may have cut the last line off within a character.
        lines = split_lines(path.read_bytes()) if path.exists() else []
        kept, superseded = lines[:resume_at], lines[resume_at:]
        for position, line in enumerate(kept):
            if _index(line) != position:
                raise DataError(f"{path}, line {position + 1} is not rollout {position}")
        if len(kept) < resume_at:
            raise DataError(f"{path} has {len(kept)} rollouts; the saved state has {resume_at}")
        if superseded:
            with (directory / SUPERSEDED).open("ab") as file:
                file.writelines(line + b"\n" for line in superseded)
            replace_bytes(path, b"".join(line + b"\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, rollouts: Sequence[Rollout]) -> None:
        self._file.writelines(
            json.dumps(asdict(rollout), ensure_ascii=False) + "\n" for rollout in rollouts
        )
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _index(line: bytes) -> int | None:
    try:
        index: int = json.loads(line)["index"]
        return index
    except (ValueError, KeyError, TypeError):  # a line that was cut off while it was written
        return None
