"""The --gates argument: learned, numbers, a file, or a policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from evals.settings import POLICY
from mhc_model.engine import Engine
from mhc_model.errors import GateError
from mhc_model.gates import GateValues, expand_gate_rows, parse_gates
from mhc_model.policy import GatePolicy

ACCEPTED = (
    "learned; a number in [0, 1]; 1, L or 2L numbers separated by commas; a .json file "
    "with a number or a list of them; policy:DIR with an exported gate policy"
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
        self._values: GateValues | None = None
        if argument.startswith(POLICY):
            self.policy = GatePolicy.load(argument.removeprefix(POLICY))
        elif argument.endswith(".json"):
            self._values = _read_json(Path(argument))
        else:
            self._values = parse_gates(argument, ACCEPTED)

    def rows(self, engine: Engine, prompts: Sequence[Sequence[int]]) -> Tensor | None:
        """(n, 2L) float32 gates on the CPU for n prompts, or None for the learned ones.

        Args:
            engine: whose model the gates are for.
            prompts: token ids, as the model gets them; only a policy reads them.

        Raises:
            GateError: if the numbers or the policy do not fit the model.
        """
        if self.policy is None:
            return expand_gate_rows(self._values, len(prompts), engine.model.config)
        self._check_policy(self.policy, engine)
        return self.policy.gates_for_prompts(engine.model, prompts)

    def _check_policy(self, policy: GatePolicy, engine: Engine) -> None:
        config, model = policy.config, engine.model.config
        if model.mhc is None:
            raise GateError("this model is plain (mhc: null): it has no gates for a policy to set")
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


def _read_json(path: Path) -> GateValues:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GateError(
            f"gates file {path} cannot be read: {error}; accepted: {ACCEPTED}"
        ) from None
