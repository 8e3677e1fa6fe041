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
from mhc_model.files import parse_row, replace_bytes, split_lines
from mhc_model.gates import RequestGates
from mhc_model.tokenizer import Tokenizer
from rl.config import RLConfig
from rl.pool import LocalPool, ReplicaPool, Result
from rl.setup import answer_tokens

ROLLOUTS, SUPERSEDED = "rollouts.jsonl", "rollouts.superseded.jsonl"


@dataclass(frozen=True)
class Rollout:
    """One episode.

    Attributes:
        index: position in the run's sequence of episodes; unique in rollouts.jsonl.
        iteration: PPO iteration that learns from it.
        problem: id of the problem.
        gates: the 2L gates that the model ran with; those of the prompt where the answer's differ.
        completion: the answer, the first one where there are several; None where none was asked.
        finish_reason: the engine's, of the first answer.
        tokens: generated tokens of all answers.
        reward: see `reward_of`.
        replica: which one answered.
        attempts: 1, or more if replicas died on the way.
        others: the further answers.
        policy_version: updates that the policy which chose the gates had had.
        answer_gates: the 2L gates of the answer, where they are not the prompt's.
        right: share of the answers that are right; None without answers.
        loglikelihood: mean log-likelihood per token of the problem's own answer; None where it was
            not asked.
    """

    index: int
    iteration: int
    problem: str
    gates: tuple[float, ...]
    completion: str | None
    finish_reason: str | None
    tokens: int | None
    reward: float
    replica: int
    attempts: int
    others: tuple[str, ...] = ()
    policy_version: int = 0
    answer_gates: tuple[float, ...] | None = None
    right: float | None = None
    loglikelihood: float | None = None

    @property
    def tokens_per_answer(self) -> float | None:
        """None without answers."""
        return None if self.tokens is None else self.tokens / (1 + len(self.others))


def reward_of(
    config: RLConfig, right: float | None, loglikelihood: float | None, tokens: float | None
) -> float:
    """What an episode is worth: what `config.reward` names, less the cost of its tokens.

    Args:
        config: of the run.
        right: share of right answers.
        loglikelihood: mean over the tokens of the problem's own answer, its end included.
        tokens: generated tokens of an answer, the mean where there are several.
    """
    worth = right if config.reward == "answer" else loglikelihood
    if worth is None or (config.token_cost > 0.0 and tokens is None):
        raise ValueError(f"the reward {config.reward} needs what was not measured")
    return worth - config.token_cost * tokens if config.token_cost > 0.0 and tokens else worth


class Asker:
    """Asks the pool problems under given gates and scores what comes back."""

    def __init__(
        self, pool: ReplicaPool | LocalPool, tokenizer: Tokenizer, config: RLConfig
    ) -> None:
        self.pool = pool
        self.tokenizer = tokenizer
        self.config = config

    def answering(self) -> Asker:
        """The same, which also answers where the reward does not need it: for comparisons."""
        if self.config.wants_answers:
            return self
        config = self.config.model_copy(update={"log_both": True})
        return Asker(self.pool, self.tokenizer, config)

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
            gates: (n, 2L) in [0, 1], one row a problem, or (n, 2, 2L), those of prompt and answer;
                None for the learned gates.
            first_index: index of the first rollout; sampled answers draw from it and the seed.
            iteration: noted in the rollouts.
            policy_version: likewise.
        """
        config = self.config
        requests: list[Request] = []
        for position, (problem, row) in enumerate(
            zip(problems, _rows(gates, len(problems)), strict=True)
        ):
            if config.wants_answers:
                requests.append(self._answer_request(problem, row, first_index + position))
            if config.wants_likelihood:
                requests.append(self._score_request(problem, row))
        results = self.pool.run(requests)
        each = config.wants_answers * config.samples + config.wants_likelihood
        return [
            self._rollout(
                problem,
                results[position * each : (position + 1) * each],
                {
                    "index": first_index + position,
                    "iteration": iteration,
                    "policy_version": policy_version,
                },
            )
            for position, problem in enumerate(problems)
        ]

    def _answer_request(self, problem: Problem, gates: RequestGates, index: int) -> Request:
        sampling = SamplingParams(
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            seed=sampling_seed(self.config.seed, index),
            stop=STOP_STRINGS,
        )
        prompt = prompt_tokens(self.tokenizer, problem)
        return Request(prompt, gates, sampling, n=self.config.samples)

    def _score_request(self, problem: Problem, gates: RequestGates) -> Request:
        """The problem's own answer as the end of a prompt, of which nothing is generated."""
        prompt = prompt_tokens(self.tokenizer, problem)
        sampling = SamplingParams(max_tokens=0, prompt_logprobs_from=len(prompt))
        return Request([*prompt, *answer_tokens(self.tokenizer, problem)], gates, sampling)

    def _rollout(
        self, problem: Problem, results: Sequence[Result], place: dict[str, int]
    ) -> Rollout:
        config, first = self.config, results[0]
        loglikelihood = _mean_logprob(results[-1]) if config.wants_likelihood else None
        answers = results[: config.samples] if config.wants_answers else []
        texts = [result.completion.text or "" for result in answers]
        solved = [getattr(score(text, problem), config.extraction) for text in texts]
        right = sum(solved) / len(solved) if solved else None
        tokens = sum(len(r.completion.tokens) for r in answers) if answers else None
        each = None if tokens is None else tokens / len(answers)
        return Rollout(
            **place,
            problem=problem.id,
            gates=first.completion.gates or (),
            completion=texts[0] if texts else None,
            finish_reason=first.completion.finish_reason if answers else None,
            tokens=tokens,
            reward=reward_of(config, right, loglikelihood, each),
            replica=first.replica,
            attempts=first.attempts,
            others=tuple(texts[1:]),
            answer_gates=first.completion.answer_gates,
            right=right,
            loglikelihood=loglikelihood,
        )


def _rows(gates: Tensor | None, count: int) -> Sequence[RequestGates]:
    """Gates of each request, as numbers: a row of the tensor would travel with all of it."""
    if gates is None:
        return [None] * count
    if gates.ndim == 3:
        return [{"prompt": prompt, "answer": answer} for prompt, answer in gates.tolist()]
    rows: list[list[float]] = gates.tolist()
    return rows


def _mean_logprob(result: Result) -> float:
    found = result.completion.prompt_logprobs
    logprobs = [] if found is None else [value for value in found.logprobs if value is not None]
    return sum(logprobs) / len(logprobs)


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
        index: int = parse_row(line)["index"]
        return index
    except (DataError, KeyError, TypeError):  # a line that was cut off while it was written
        return None
