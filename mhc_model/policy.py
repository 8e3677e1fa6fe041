"""The exported gate policy: reads what a prompt looks like to the model, gives its gates.

A policy directory holds `policy.json` (what it observes, what it sets, for which checkpoint) and
`policy.safetensors` (the weights). It loads and runs with torch alone, so evaluation and serving
use the policy that reinforcement learning exported without knowing how it was trained.

Axes: b prompt, c channel, a action.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from einops import repeat
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mhc_model.config import ActionSpace, Observation, PolicyConfig
from mhc_model.decoder import Decoder
from mhc_model.errors import CheckpointError
from mhc_model.files import Stored, read_object, stored_tensors
from mhc_model.gates import SUBLAYERS
from mhc_model.settings import validate_settings

__all__ = [
    "ActionSpace",
    "GatePolicy",
    "Observation",
    "PolicyConfig",
    "expand_actions",
    "hidden_observation",
    "observe_prompts",
    "prompt_observation",
]

CONFIG, WEIGHTS = "policy.json", "policy.safetensors"

NO_PROMPT = "an observation needs at least one prompt, each of at least one token"


class GatePolicy(nn.Module):
    """A small network from an observation to a Beta distribution over each gate."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.observation_dim, *config.hidden)
        # The scale of embeddings differs between models; a norm makes one learning rate fit all.
        layers: list[nn.Module] = [nn.LayerNorm(config.observation_dim)]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 2 * config.n_actions)
        # Starts as nearly the same, symmetric distribution for every prompt.
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def concentrations(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters alpha and beta, each (b, a) and above 1, for observation (b, c).

        Above 1 the density has one mode inside of (0, 1) and is zero at both ends.
        """
        alpha, beta = self.head(self.trunk(observation)).chunk(2, dim=-1)
        return 1.0 + F.softplus(alpha), 1.0 + F.softplus(beta)

    def forward(self, observation: Tensor) -> Tensor:
        """The mean of the distribution: (b, c) float32 -> (b, a) in (0, 1)."""
        alpha, beta = self.concentrations(observation)
        return alpha / (alpha + beta)

    def gates(self, observation: Tensor) -> Tensor:
        """(b, c) float32 -> (b, 2L) float32, one gate a sublayer; see `expand_actions`."""
        return expand_actions(self(observation), self.config)

    @torch.no_grad()
    def gates_for_prompts(self, model: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(b, 2L) float32 gates on the CPU for prompts given as token ids; see `expand_actions`."""
        device = self.head.weight.device
        return self.gates(observe_prompts(model, prompts, self.config).to(device)).cpu()

    def save(self, directory: str | Path) -> None:
        """Writes the policy directory, whole or not at all; replaces an earlier policy.

        Raises:
            CheckpointError: if the directory holds something else.
        """
        directory = Path(directory)
        if directory.exists() and not (directory / CONFIG).exists():
            raise CheckpointError(f"{directory} exists and is no policy; give another directory")
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        written, retired = staging / "new", staging / "old"
        written.mkdir()
        try:
            (written / CONFIG).write_text(
                self.config.model_dump_json(indent=2) + "\n", encoding="utf-8"
            )
            weights = {name: value.cpu() for name, value in self.state_dict().items()}
            save_file(weights, written / WEIGHTS)
            if directory.exists():
                directory.rename(retired)
            written.rename(directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    @classmethod
    def load(cls, directory: str | Path) -> GatePolicy:
        """Reads a policy directory; the policy is on the CPU, in eval mode.

        Raises:
            CheckpointError: naming the file that is missing, damaged or does not fit.
            ConfigError: if policy.json has unknown or impossible fields.
        """
        directory = Path(directory)
        try:
            values = read_object(directory / CONFIG)
            stored = stored_tensors(directory / WEIGHTS)
        except CheckpointError as error:
            raise CheckpointError(f"{directory} is no policy directory: {error}") from None
        config = validate_settings(PolicyConfig, values, str(directory / CONFIG))
        if len(config.hidden) > len(stored):  # before anything is made for each of them
            raise CheckpointError(
                f"{directory / WEIGHTS} does not fit {CONFIG}: {len(config.hidden)} hidden layers, "
                f"{len(stored)} tensors"
            )
        weights = _load_weights(directory / WEIGHTS, config, stored)
        policy = cls(config)
        try:
            policy.load_state_dict(weights)
        except RuntimeError as error:  # torch names the tensors that do not fit
            raise CheckpointError(f"{directory / WEIGHTS} does not fit {CONFIG}: {error}") from None
        return policy.eval()


def _load_weights(
    file: Path, config: PolicyConfig, stored: Mapping[str, Stored]
) -> dict[str, Tensor]:
    """The tensors of a file, once their shapes are those of the configuration."""
    try:
        with torch.device("meta"):
            expected = GatePolicy(config).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(
            f"{CONFIG} beside {file}: its sizes make no policy: {error}"
        ) from None
    for name, value in expected.items():
        if name in stored and stored[name].shape != tuple(value.shape):
            raise CheckpointError(
                f"{file} does not fit {CONFIG}: {name!r} has shape {stored[name].shape}, the "
                f"configuration needs {tuple(value.shape)}"
            )
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def expand_actions(actions: Tensor, config: PolicyConfig) -> Tensor:
    """(b, a) actions -> (b, 2L) gates, in the order of `mhc_model.gates.gate_names`.

    With the action space `prompt_and_answer` they are (b, 2, 2L), those of the prompt first.
    """
    sublayers = len(SUBLAYERS)
    if config.action_space == "global":
        return repeat(actions, "b 1 -> b gates", gates=sublayers * config.n_layers)
    if config.action_space == "per_layer":
        return repeat(actions, "b l -> b (l s)", s=sublayers)
    if config.action_space == "prompt_and_answer":
        return repeat(actions, "b phase -> b phase gates", gates=sublayers * config.n_layers)
    return actions


def observe_prompts(
    model: Decoder, prompts: Sequence[Sequence[int]], config: PolicyConfig
) -> Tensor:
    """(b, c) float32 on the model's device: what a policy of this configuration sees of prompts."""
    if config.observation_layer is None:
        return prompt_observation(model, prompts)
    return hidden_observation(model, prompts, config.observation_layer)


@torch.no_grad()
def hidden_observation(model: Decoder, prompts: Sequence[Sequence[int]], layer: int) -> Tensor:
    """Mean over each prompt of the hidden state after `layer` layers, under the learned gates.

    Each prompt is read alone, so what it gives never depends on the others of a call.

    Args:
        model: whose first `layer` layers run.
        prompts: token ids, each prompt at least one.
        layer: 1 to L.

    Returns:
        (b, c) float32 on the model's device.
    """
    if len(prompts) == 0 or min(map(len, prompts)) == 0:
        raise ValueError(NO_PROMPT)
    device = model.embedding.weight.device
    return torch.stack(
        [
            model.hidden_after(torch.tensor([prompt], device=device), layer)[0].float().mean(0)
            for prompt in prompts
        ]
    )


@torch.no_grad()
def prompt_observation(model: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Mean token embedding of each prompt.

    Args:
        model: whose embedding is read, before any norm.
        prompts: token ids, each prompt at least one; lengths may differ.

    Returns:
        (b, c) float32 on the model's device.
    """
    embedding = model.embedding.weight
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    if len(prompts) == 0 or int(lengths.min()) == 0:
        raise ValueError(NO_PROMPT)
    flat = torch.tensor([token for prompt in prompts for token in prompt])
    rows = embedding[flat.to(embedding.device)].float()
    return torch.segment_reduce(rows, "mean", lengths=lengths.to(embedding.device))
