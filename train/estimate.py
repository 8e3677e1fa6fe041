"""What a run will take, before it is started: parameters, FLOPs, memory and time.

Memory of activations is counted, not guessed: the forward pass of the first one and two layers runs
on tensors that have a shape and no content, and what autograd keeps is added up. The rest follows,
for every further layer keeps as much as the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mhc_model.checkpoint import find_checkpoint, read_model_config
from mhc_model.config import ModelConfig
from mhc_model.decoder import Decoder, describe, quiet_about_mixing
from train.config import TrainConfig
from train.data import ShardedTokens
from train.loop import group_parameters, peak_tflops

# What a GPU is taken for where the configuration says none.
USUAL_GPU = "H100"


@dataclass(frozen=True)
class Estimate:
    """Figures of a run; bytes are of one worker.

    Attributes:
        description: the model in words.
        flops_per_token: forward and backward.
        tokens: of the whole run.
        state_bytes: weights, gradients and the optimizer's state.
        activation_bytes: what a forward pass keeps for its backward pass, and the logits of one
            chunk with their gradient.
        tflops: of all workers together at `expected_mfu`; None where the device is not known.
        device: what that is about.
        behaviours: what rows are trained under, in words; empty without.
    """

    description: str
    flops_per_token: int
    tokens: int
    state_bytes: int
    activation_bytes: int
    tflops: float | None
    device: str
    behaviours: str = ""

    @property
    def flops(self) -> int:
        """Of the whole run."""
        return self.flops_per_token * self.tokens

    @property
    def seconds(self) -> float | None:
        """Of training alone: validations, checkpoints and the start come on top."""
        return None if self.tflops is None else self.flops / (self.tflops * 1e12)

    def lines(self) -> list[str]:
        """For a person."""
        state, activations = (size / 2**30 for size in (self.state_bytes, self.activation_bytes))
        if self.seconds is None:
            time = "time: not known for a CPU; give --peak-tflops and --expected-mfu"
        else:
            hours = timedelta(seconds=round(self.seconds))
            time = f"time: {hours} of training at {self.tflops:,.4g} TFLOP/s, {self.device}"
        return [
            self.description,
            f"{self.tokens:,} tokens, {self.flops:.3e} FLOPs in all",
            f"memory of a worker: {state + activations:.2f} GiB = {state:.2f} for weights, "
            f"gradients and optimizer + {activations:.2f} for activations",
            time,
            *([self.behaviours] if self.behaviours else []),
        ]


def estimate(config: TrainConfig) -> Estimate:
    """Figures of a run; nothing is trained or allocated, and no more read than sizes.

    Raises:
        CheckpointError: if `init_from` names no checkpoint.
        DataError: if `data.shards` names none.
    """
    model_config = _model_config(config)
    with torch.device("meta"), quiet_about_mixing():
        model = Decoder(model_config, seed=None)
    tflops, device = _tflops(config)
    return Estimate(
        description=describe(Decoder, model_config, config.context),
        flops_per_token=model.estimate_flops(config.context),
        tokens=config.steps * config.total_batch_tokens,
        state_bytes=_state_bytes(config, model),
        activation_bytes=_activation_bytes(config, model_config),
        tflops=tflops,
        device=device,
        behaviours=_behaviours(config, model_config),
    )


def _model_config(config: TrainConfig) -> ModelConfig:
    if config.init_from is not None:
        return read_model_config(find_checkpoint(config.init_from))
    data = config.data
    # A trained vocabulary can turn out smaller; others are known when they are read.
    known: dict[str, int] = {}
    if data.shards is not None:
        known = {"vocab_size": ShardedTokens(data.shards).manifest.vocab_size}
    elif data.tokenizer == "train":
        known = {"vocab_size": data.vocab_size}
    return config.model.model_copy(update=known)


def _behaviours(config: TrainConfig, model: ModelConfig) -> str:
    """Ranges, and shares of the rows where they are known before these are read."""
    known = {**model.behaviours, **config.behaviours}
    data = config.data
    shares: dict[str, float] = {}
    if data.shards is not None:
        tokens = ShardedTokens(data.shards)
        documents = sum(entry.documents for entry in tokens.manifest.train)
        shares = {str(group): rows / documents for group, rows, _ in tokens.groups}
    elif data.builtin_behaviours and not data.files:
        shares = dict.fromkeys(data.builtin_behaviours, 1 / len(data.builtin_behaviours))
    if data.style_words:
        names = data.builtin_behaviours or known
        return "behaviours as words: " + (", ".join(names) or "those of the rows")
    words = []
    for name, behaviour in known.items():
        ranges = ", ".join(f"{low:g} to {high:g}" for low, high in behaviour.ranges)
        share = f", {shares[name]:.1%} of the rows" if name in shares else ""
        words.append(f"{name} (gates {ranges}{share})")
    return f"behaviours: {', '.join(words)}" if words else ""


def _tflops(config: TrainConfig) -> tuple[float | None, str]:
    """TFLOP/s of all workers at the expected MFU, and what that is."""
    workers = config.workers.num_workers
    share = f"{config.expected_mfu:.0%} MFU (assumed) of {workers} x"
    if config.peak_tflops is not None:
        peak, device = config.peak_tflops, f"{share} {config.peak_tflops:g} TFLOP/s"
    elif config.workers.use_gpu:
        known = peak_tflops(USUAL_GPU, config.precision)
        if known is None:
            return None, ""
        peak, device = known, f"{share} {USUAL_GPU}"
    else:
        return None, ""
    return peak * workers * config.expected_mfu, device


def _state_bytes(config: TrainConfig, model: Decoder) -> int:
    """float32: each parameter, and of those that learn a gradient and one or two moments."""
    count = 4 * model.count_parameters()
    for group, parameters in group_parameters(model).items():
        if config.trained == "mhc" and group != "mhc":
            continue
        muon = group == "hidden" and config.optimizer.hidden == "muon"
        learned = sum(parameter.numel() for parameter in parameters.values())
        count += 4 * learned * (2 if muon else 3)
    return count


def _activation_bytes(config: TrainConfig, model: ModelConfig) -> int:
    one, two = (
        saved_bytes(config, model.model_copy(update={"n_layers": layers})) for layers in (1, 2)
    )
    layer, rest = two - one, one - (two - one)
    kept = layer * model.n_layers
    if config.gradient_checkpointing:
        streams = 1 if model.mhc is None else model.mhc.n_streams + 1
        size = 2 if config.precision == "bfloat16" else 4
        between = config.device_batch * config.context * model.d_model * streams * size
        kept = layer + between * model.n_layers
    # Of the logits in float32: themselves, capped, and a gradient.
    logits = 3 * 4 * min(config.loss_chunk, config.device_batch * config.context)
    return rest + kept + logits * model.vocab_size


def saved_bytes(config: TrainConfig, model_config: ModelConfig) -> int:
    """Bytes that autograd keeps of one forward pass without gradient checkpointing.

    Parameters and the loss with its logits are not among them.
    """
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        held.append(storage)  # or its number might be given to another
        return tensor

    held: list[torch.UntypedStorage] = []
    with FakeTensorMode(), quiet_about_mixing():
        model = Decoder(model_config, seed=None).train()
        tokens = torch.zeros(config.device_batch, config.context, dtype=torch.int64)
        gates = None
        if model_config.gateless is None:
            gates = model.learned_gates().expand(config.device_batch, -1)
        own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
        bfloat16 = torch.autocast("cpu", torch.bfloat16, config.precision == "bfloat16")
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), bfloat16:
            model.hidden(tokens, gates)
        return sum(size for number, size in sizes.items() if number not in own)
