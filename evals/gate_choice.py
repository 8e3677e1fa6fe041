"""The --gates argument: learned, numbers, a behaviour's name, a file, or a policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from evals.settings import POLICY
from evals.tasks import gate_rows
from mhc_model.engine import Engine
from mhc_model.errors import GateError
from mhc_model.gates import IN_WORDS, RequestGates, parse_gates, resolve_gates
from mhc_model.policy import GatePolicy

ACCEPTED = (
    f"{IN_WORDS}; a .json file with a number, a list of them, a name, or "
    '{"prompt": ..., "answer": ...} of these; policy:DIR with an exported gate policy'
)


class GateChoice:
    """Turns the argument into gates once a model and its prompts are there."""

    def __init__(self, argument: str) -> None:
        """Reads the argument, and the file or policy that it names.

        Raises:
            GateError: if it is none of what is accepted.
            CheckpointError, ConfigError: if the policy cannot be loaded.
        """
        self.argument = argument
        self.policy: GatePolicy | None = None
        self._values: RequestGates = None
        if argument.startswith(POLICY):
            self.policy = GatePolicy.load(argument.removeprefix(POLICY))
        elif argument.endswith(".json"):
            self._values = _read_json(Path(argument))
        else:
            self._values = parse_gates(argument, ACCEPTED)

    def check(self, engine: Engine) -> None:
        """Refuses what does not fit a model, before anything runs.

        Raises:
            GateError: if the numbers, the name or the policy do not fit; it lists what does.
        """
        if self.policy is None:
            resolve_gates(self._values, engine.model.config)
        else:
            self._check_policy(self.policy, engine)

    def fixed(self, engine: Engine) -> Tensor | None:
        """The numbers of a choice that is the same for every prompt, (2L,), or (2, 2L) where prompt
        and answer differ; None for a policy, and for a model without gates."""
        if self.policy is not None or engine.model.config.gateless:
            return None
        rows = gate_rows(self._values, 1, engine.model)
        return engine.model.learned_gates().detach().cpu() if rows is None else rows[0]

    def rows(self, engine: Engine, prompts: Sequence[Sequence[int]]) -> Tensor | None:
        """(n, 2L) float32 gates on the CPU for n prompts, or None for the learned ones; (n, 2, 2L)
        where those of prompt and answer differ.

        Args:
            engine: whose model the gates are for.
            prompts: token ids, as the model gets them; only a policy reads them.

        Raises:
            GateError: if the numbers, the name or the policy do not fit the model.
        """
        if self.policy is None:
            return gate_rows(self._values, len(prompts), engine.model)
        self._check_policy(self.policy, engine)
        return self.policy.gates_for_prompts(engine.model, prompts)

    def _check_policy(self, policy: GatePolicy, engine: Engine) -> None:
        config, model = policy.config, engine.model.config
        if model.gateless is not None:
            raise GateError(f"this model is {model.gateless}: it has no gates for a policy to set")
        if config.checkpoint_hash not in (None, engine.checkpoint_hash):
            raise GateError(
                f"{self.argument} was trained on checkpoint {config.checkpoint_hash}, this is "
                f"{engine.checkpoint_hash}; use the policy of this checkpoint"
            )
        if (config.n_layers, config.observation_dim) != (model.n_layers, model.d_model):
            raise GateError(
                f"{self.argument} is for {config.n_layers} layers of width "
                f"{config.observation_dim}, the model has {model.n_layers} of {model.d_model}"
            )


def _read_json(path: Path) -> RequestGates:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GateError(
            f"gates file {path} cannot be read: {error}; accepted: {ACCEPTED}"
        ) from None
    # A text is what the command line takes, so that "direct:0.5" may stand there, too.
    return parse_gates(found, ACCEPTED) if isinstance(found, str) else found
