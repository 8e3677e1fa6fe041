"""Parameter groups and their optimizers.

Muon is for hidden matrices only; embedding, head and the small parameters of the hyper-connections
have AdamW with their own learning rates and no weight decay.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from mhc_model.errors import CheckpointError, MHCError
from train.config import OptimizerConfig

# Which parameters a group holds, by name. Every parameter matches exactly one pattern.
GROUPS = {
    "hidden": r"layers\.\d+\.(attention|mlp)\.\w+_proj\.weight",
    "embedding": r"(position_)?embedding\.weight",
    "norm": r"(.*\.)?\w+_norm\.(weight|bias)|layers\.\d+\.(attention|mlp)\.\w+_proj\.bias",
    "head": r"head\.weight",
    "mhc": r"layers\.\d+\.(attention|mlp)_connection\.(fn|base|scale)"
    r"|collapse_connection\.(fn|base|scale)|stream_embedding|gate_logits",
}


def group_parameters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Group -> name -> parameter, of those that learn; empty groups are left out.

    Raises:
        RuntimeError: if a parameter is in no group: a new kind of parameter needs a decision here.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        matching = [group for group, pattern in GROUPS.items() if re.fullmatch(pattern, name)]
        if len(matching) != 1:
            raise RuntimeError(
                f"parameter {name!r} is in the groups {matching}, not in exactly one"
            )
        if parameter.requires_grad:
            groups.setdefault(matching[0], {})[name] = parameter
    return groups


def freeze_all_but_mhc(model: nn.Module) -> None:
    """Leaves only hyper-connections, stream embedding and gates to learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.fullmatch(GROUPS["mhc"], name) is not None)


class Optimizers:
    """The optimizers of one model, stepped together."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self._names: dict[nn.Parameter, str] = {}
        lrs = {
            "hidden": config.lr,
            "embedding": config.embedding_lr,
            "head": config.head_lr,
            "norm": config.norm_lr,
            "mhc": config.mhc_lr,
        }
        adamw, muon = [], []
        for group, parameters in group_parameters(model).items():
            self._names |= {parameter: name for name, parameter in parameters.items()}
            decay = config.weight_decay if group == "hidden" else 0.0
            options = {
                "params": list(parameters.values()),
                "lr": lrs[group],
                "full_lr": lrs[group],
                "weight_decay": decay,
            }
            (muon if group == "hidden" and config.hidden == "muon" else adamw).append(options)
        betas = (config.beta1, config.beta2)
        self._all: list[Optimizer] = [AdamW(adamw, betas=betas, eps=config.eps)]
        if muon:
            # match_rms_adamw: one learning rate means the same for matrices of every shape.
            self._all.append(Muon(muon, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"))

    def clip(self) -> float:
        """Clips the gradients; gives the norm of the whole gradient before it, finite or not."""
        limit = float("inf") if self.config.gradient_clip is None else self.config.gradient_clip
        return float(nn.utils.clip_grad_norm_(list(self._names), limit))

    def update(self, lr_multiplier: float) -> None:
        """Updates all parameters by their gradients, which are then cleared."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = lr_multiplier * group["full_lr"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def step(self, lr_multiplier: float) -> float:
        """`clip` and `update`; gives the norm.

        Raises:
            MHCError: if that is not a finite number; nothing is updated.
        """
        norm = self.clip()
        if not math.isfinite(norm):
            raise MHCError(f"the norm of the gradient is {norm}; lower the learning rates")
        self.update(lr_multiplier)
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state, flat: `parameter/entry` -> tensor."""
        return {
            f"{self._names[parameter]}/{entry}": value.detach().cpu().contiguous()
            for optimizer in self._all
            for parameter, entries in optimizer.state.items()
            for entry, value in entries.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state_tensors` gave.

        Raises:
            CheckpointError: if a parameter has no state, or there is state of none.
        """
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, entry = key.rpartition("/")
            by_name.setdefault(name, {})[entry] = value
        different = set(by_name) ^ set(self._names.values())
        if different:
            raise CheckpointError(
                f"the optimizer state and the model differ in the parameter {min(different)!r}"
            )
        for optimizer in self._all:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    entries = by_name[self._names[parameter]]
                    optimizer.state[parameter] = {
                        # AdamW's step counter stays on the CPU.
                        entry: value if entry == "step" else _place(value, parameter)
                        for entry, value in entries.items()
                    }


def _place(value: Tensor, parameter: nn.Parameter) -> Tensor:
    if value.shape != parameter.shape:
        raise CheckpointError(
            f"optimizer state of shape {tuple(value.shape)} for a parameter of shape "
            f"{tuple(parameter.shape)}"
        )
    return value.to(parameter.device, copy=True, memory_format=torch.preserve_format)
