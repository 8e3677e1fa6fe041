"""Configuration of `python -m rl.ablate`: that of a PPO run, and what is compared with it."""

from __future__ import annotations

from pydantic import Field, model_validator

from mhc_model.settings import Settings
from rl.ablate.arms import (
    BEHAVIOUR,
    CEM,
    GRADIENT,
    GRADIENT_CONTEXTUAL,
    KNOWN,
    LEARNED,
    METHODS,
    REINFORCE,
    fixed_name,
    parse_arm,
)
from rl.config import RLConfig


class SearchSettings(Settings):
    """The bandit without context: cross-entropy method."""

    candidates: int = Field(32, ge=4, description="gate vectors of a round")
    elite: float = Field(
        0.25, gt=0.0, le=0.5, description="share of them that the next round is drawn like"
    )


class ReinforceSettings(Settings):
    """REINFORCE with PPO's network."""

    lr: float = Field(3e-3, gt=0.0, description="learning rate (Adam)")
    batch: int = Field(64, ge=2, description="rollouts of one step")
    entropy: float = Field(0.003, ge=0.0, description="weight of the entropy bonus")


class GradientSettings(Settings):
    """Gates by gradient of the right answers' cross-entropy, everything else frozen."""

    lr: float = Field(0.05, gt=0.0, description="learning rate (Adam) of the gates' logits")
    policy_lr: float = Field(3e-3, gt=0.0, description="learning rate of a contextual policy")
    batch: int = Field(16, ge=1, description="problems of one step")
    budget: int | None = Field(
        None, ge=1, description="sequences forward and backward; none is as many as rollouts"
    )


class AblateConfig(RLConfig):
    """Arms that choose gates, each with iterations * rollouts rollouts, tested on held-out
    problems.

    The fields of `python -m rl` mean what they mean there, for PPO's arms; `action_space` is that
    of arms that name none. A sweep is not done: fixed gates are arms.
    """

    arms: tuple[str, ...] = Field(
        (
            *("ppo:global", "ppo:per_layer", "ppo:per_sublayer"),
            *("best_constant", "random", "cem", "reinforce", "gradient", "gradient_contextual"),
        ),
        min_length=1,
        description="METHOD or METHOD:ACTION_SPACE; the learned gates, the fixed gates of `grid` "
        f"and the model's behaviours are always there. Methods: {', '.join(METHODS)}",
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="each arm learns with each")
    test_problems: int = Field(
        500, ge=2, description="the first N of the test split of `data`, which no arm learns from"
    )
    grid: tuple[float, ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, description="fixed gates, one for all sublayers"
    )
    against: tuple[str, ...] = Field(
        ("learned", "best_constant"),
        min_length=1,
        description="arms of this ablation, g=GATE, behaviour:NAME and learned included, that "
        "others are tested against: all arms that choose against learned, PPO's arms against each "
        "of the rest",
    )
    known: str | None = Field(
        None,
        description="JSON file, id of each held-out problem -> its right gates (whatever a request "
        "may give), where they are known: an arm of its own",
    )
    search: SearchSettings = Field(SearchSettings(), description="of the arm cem")
    reinforce: ReinforceSettings = Field(ReinforceSettings(), description="of the arm reinforce")
    gradient: GradientSettings = Field(GradientSettings(), description="of the gradient arms")

    @property
    def budget(self) -> int:
        """Rollouts of every arm that learns."""
        return self.iterations * self.rollouts

    @model_validator(mode="after")
    def _check_arms(self) -> AblateConfig:
        for arm in self.arms:
            method, space = parse_arm(arm, self.action_space)
            if space == "prompt_and_answer" and method in (GRADIENT, GRADIENT_CONTEXTUAL):
                raise ValueError(
                    f"arm {arm!r} goes by gradient through sequences that have one row of gates "
                    f"each; give it another action space than {space}"
                )
            if space == "prompt_and_answer" and self.wants_likelihood:
                raise ValueError(
                    f"arm {arm!r} gives prompt and answer gates of their own, but the likelihood "
                    f"(reward, or log_both) is scored under those of the prompt; give the arm "
                    f"another action space"
                )
        for name, entries in (("arms", self.arms), ("seeds", self.seeds), ("grid", self.grid)):
            if len(set(entries)) != len(entries):
                raise ValueError(f"{name} has an entry twice: {entries}")
        for gate in self.grid:
            if not 0.0 <= gate <= 1.0:
                raise ValueError(f"grid gate {gate} is outside of [0, 1]")
        if self.difficulty is not None:
            raise ValueError(
                "difficulty is a window for PPO alone: its probes would come on top of the budget, "
                "and the other arms would learn from other problems; leave it out"
            )
        if self.budget < len(self.grid):
            raise ValueError(
                f"the budget of {self.budget} rollouts does not cover a grid of {len(self.grid)}"
            )
        return self

    @model_validator(mode="after")
    def _check_against(self) -> AblateConfig:
        there = [LEARNED, *map(fixed_name, self.grid), *self.arms]
        there += [KNOWN] if self.known is not None else []
        for name in self.against:
            if name not in there and not name.startswith(f"{BEHAVIOUR}:"):  # `Study` checks these
                raise ValueError(
                    f"against has {name!r}, which is no arm of this ablation; there are: "
                    f"{', '.join(there)}"
                )
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> AblateConfig:
        """An arm that cannot take one step would be tested as it started."""
        gradient = ("gradient.batch", self.gradient.batch, self.gradient.budget or self.budget)
        steps = {
            CEM: ("search.candidates", self.search.candidates, self.budget),
            REINFORCE: ("reinforce.batch", self.reinforce.batch, self.budget),
            GRADIENT: gradient,
            GRADIENT_CONTEXTUAL: gradient,
        }
        for arm in self.arms:
            method, _ = parse_arm(arm, self.action_space)
            field, least, budget = steps.get(method, ("", 0, 0))
            if budget < least:
                raise ValueError(
                    f"arm {arm!r} has a budget of {budget}, less than one step of {least} "
                    f"({field}); raise the budget, lower {field}, or leave the arm out"
                )
        return self
