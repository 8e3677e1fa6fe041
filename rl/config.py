"""Configuration of `python -m rl`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mhc_model.config import (
    MAX_SAMPLES,
    ActionSpace,
    EngineKind,
    HiddenWidths,
    Observation,
    check_observation,
)
from mhc_model.settings import RaySettings, Settings


class PoolSettings(Settings):
    """The replicas: how many, what each may use, and what happens when one dies."""

    replicas: int = Field(
        1, ge=1, description="replica actors, each with the whole model; at least that many"
    )
    max_replicas: int | None = Field(
        None,
        ge=1,
        description="at most that many: more are started while requests wait, and end when idle; "
        "none keeps `replicas`",
    )
    grow_after_s: float = Field(
        2.0, ge=0.0, description="seconds that requests must wait before another one is started"
    )
    idle_s: float = Field(
        60.0, gt=0.0, description="seconds without work after which one beyond `replicas` ends"
    )
    cpus_per_replica: float = Field(1.0, ge=0.0, description="logical CPUs that each reserves")
    gpus_per_replica: float = Field(
        0.0, ge=0.0, description="GPUs that each reserves, whole or a fraction; 0 runs on the CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto is CUDA where gpus_per_replica is above 0, else the CPU"
    )
    threads: int = Field(1, ge=1, description="torch threads of each replica")
    engine: EngineKind = Field(
        "torch", description="what decodes: this project's engine, or vLLM (docs/vllm.md)"
    )
    max_batch: int = Field(64, ge=1, description="samples that one replica runs at once")
    slice_s: float = Field(
        0.05, gt=0.0, description="seconds after which a replica reports and takes new requests"
    )
    deadline_s: float = Field(
        300.0,
        gt=0.0,
        description="seconds that a replica may hold a request; then it counts as hung, and what "
        "it holds is done elsewhere",
    )
    start_deadline_s: float = Field(
        120.0, gt=0.0, description="seconds in which a replica must have loaded the model"
    )
    max_attempts: int = Field(
        4, ge=1, description="times that a request is tried before the whole call fails"
    )
    max_queue: int = Field(
        100_000,
        ge=1,
        description="requests that may wait; a call with more is refused, further calls wait",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> PoolSettings:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below replicas {self.replicas}; give at "
                f"least as many, or leave it out"
            )
        return self

    @property
    def replica_device(self) -> str:
        """What `auto` means here."""
        if self.device != "auto":
            return self.device
        return "cuda" if self.gpus_per_replica else "cpu"


class PPOSettings(Settings):
    """PPO's learner."""

    gamma: float = Field(
        0.0, ge=0.0, le=1.0, description="discount; without effect, as an episode has one step"
    )
    lr: float = Field(1e-3, gt=0.0, description="learning rate (Adam)")
    epochs: int = Field(10, ge=1, description="passes over the rollouts of an iteration")
    minibatch: int = Field(64, ge=1, description="rollouts of one gradient step")
    clip: float = Field(0.2, gt=0.0, description="clip range of the probability ratio")
    entropy: float = Field(
        0.003, ge=0.0, description="weight of the entropy bonus, summed over the gates"
    )
    value_weight: float = Field(0.5, ge=0.0, description="weight of the value function's loss")
    kl_weight: float = Field(0.2, ge=0.0, description="initial weight of the KL penalty")
    kl_target: float = Field(0.02, gt=0.0, description="KL that its weight is adapted to")
    gradient_clip: float = Field(0.5, gt=0.0, description="largest norm of the gradient")
    hidden: HiddenWidths = Field((64, 64), description="hidden widths of policy and value net")


class RLConfig(Settings):
    """One run that tunes the gates of one checkpoint."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the run and of its directory; the same name resumes",
    )
    checkpoint: str = Field(description="checkpoint or run directory of an mHC model")
    storage: str = Field("runs", description="directory of the runs")
    data: str = Field(
        "builtin:1",
        description="training problems: JSON lines (a file or directory), builtin:LEVEL, or a hub "
        "name; its train split is used",
    )
    problems: int = Field(2000, ge=1, description="the first N training problems")
    action_space: ActionSpace = Field(
        "per_sublayer",
        description="what an action sets: one gate, one a layer, one a sublayer, or one while the "
        "prompt is read and one for the answer",
    )
    observation: Observation = Field(
        "mean_prompt_embedding",
        description="what the policy sees: the mean over the prompt of its token embeddings, or of "
        "the hidden state after observation_layer, under the learned gates",
    )
    observation_layer: int | None = Field(
        None, ge=1, description="1 to L, the layer of mean_hidden_state; none otherwise"
    )
    reward: Literal["answer", "likelihood"] = Field(
        "answer",
        description="what is rewarded, before the cost of tokens: a right answer with 1; or the "
        "mean log-likelihood per token of the problem's own answer under the gates, which says "
        "something also where answers are hardly ever right",
    )
    token_cost: float = Field(
        0.0, ge=0.0, description="taken from the reward for each token that is generated"
    )
    log_both: bool = Field(
        False,
        description="measure also what the reward does not need: answers where it is the "
        "likelihood, the likelihood where it is the answer",
    )
    extraction: Literal["strict", "flexible"] = Field(
        "strict", description="which extraction of the answer must be right"
    )
    samples: int = Field(
        1,
        ge=1,
        le=MAX_SAMPLES,
        description="answers to each problem under the same gates; the reward is that of their "
        "mean, so it is less noisy. More than 1 needs a temperature",
    )
    difficulty: tuple[float, float] | None = Field(
        None,
        description="least and largest solve rate of the problems to train on; none takes all. A "
        "rate of 0 or 1 means that gates did not matter",
    )
    difficulty_probes: int = Field(
        4, ge=2, description="answers that measure a solve rate: learned gates, the others random"
    )
    max_tokens: int = Field(64, ge=1, description="most tokens of an answer")
    temperature: float = Field(
        0.0, ge=0.0, description="of the answers; 0 is greedy, as in evaluation"
    )
    envs: int = Field(64, ge=1, description="episodes that are stepped together, one pool call")
    asynchronous: bool = Field(
        False,
        description="make the next iteration's rollouts while the learner works: the replicas are "
        "not idle then, and the acting policy is one update older. Reproducible either way",
    )
    iterations: int = Field(8, ge=1, description="PPO iterations")
    rollouts: int = Field(256, ge=1, description="rollouts of an iteration; a multiple of envs")
    checkpoint_every: int = Field(2, ge=1, description="iterations between saved states")
    sweep: tuple[float | str, ...] = Field(
        (0.0, 0.5, 1.0),
        description="fixed gates that are evaluated first: how much room there is. Numbers, one "
        "gate for all sublayers, or names of the model's behaviours",
    )
    sweep_problems: int = Field(
        128, ge=1, description="training problems of the sweep; the final policy gets the same"
    )
    seed: int = Field(0, ge=0, description="of policy, problems and answers")
    pool: PoolSettings = Field(PoolSettings(), description="the replicas")
    ppo: PPOSettings = Field(PPOSettings(), description="the learner")
    ray: RaySettings = Field(RaySettings(), description="where Ray runs")

    @property
    def wants_answers(self) -> bool:
        """Whether a rollout generates an answer."""
        return self.reward == "answer" or self.token_cost > 0.0 or self.log_both

    @property
    def wants_likelihood(self) -> bool:
        """Whether a rollout scores the problem's own answer."""
        return self.reward == "likelihood" or self.log_both

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_reward(cls, values: Any) -> Any:
        """`reward` was once the name of what is now `extraction`."""
        if isinstance(values, dict) and values.get("reward") in ("strict", "flexible"):
            values = dict(values)
            values.setdefault("extraction", values.pop("reward"))
        return values

    @model_validator(mode="after")
    def _check_sizes(self) -> RLConfig:
        if self.rollouts % self.envs:
            raise ValueError(
                f"rollouts {self.rollouts} is not a multiple of envs {self.envs}: an iteration is "
                f"whole steps of all environments"
            )
        if self.ppo.minibatch > self.rollouts:
            raise ValueError(
                f"ppo.minibatch {self.ppo.minibatch} exceeds the {self.rollouts} rollouts of an "
                f"iteration"
            )
        for gate in self.sweep:
            if not isinstance(gate, str) and not 0.0 <= gate <= 1.0:
                raise ValueError(f"sweep gate {gate} is outside of [0, 1]")
        return self

    @model_validator(mode="after")
    def _check_reward(self) -> RLConfig:
        if self.wants_likelihood and self.action_space == "prompt_and_answer":
            what = "reward: likelihood" if self.reward == "likelihood" else "log_both"
            raise ValueError(
                f"{what} scores the problem's own answer as the end of a prompt, which is read "
                f"under the prompt's gates alone; the action space prompt_and_answer would learn "
                f"nothing about the answer's. Take another action space, or reward: answer"
            )
        if self.difficulty is not None and not self.wants_answers:
            raise ValueError(
                "difficulty is a window for the share of right answers, and with reward: "
                "likelihood nothing is answered; leave it out, or set log_both"
            )
        return self

    @model_validator(mode="after")
    def _check_episodes(self) -> RLConfig:
        check_observation(self.observation, self.observation_layer)
        if self.samples > 1 and self.temperature == 0.0:
            raise ValueError(
                f"samples is {self.samples} at temperature 0: greedy answers would all be the "
                f"same; give a temperature above 0, or 1 sample"
            )
        if self.difficulty is not None:
            low, high = self.difficulty
            if not 0.0 <= low <= high <= 1.0:
                raise ValueError(
                    f"difficulty {low:g} to {high:g} is no window: 0 <= least <= largest <= 1"
                )
        return self
