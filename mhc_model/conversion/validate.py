"""Whether a converted model is the original: logits, every sublayer, and what is generated.

The original runs in transformers' own class, so the check does not rest on our decoder; or it is
another checkpoint of ours. Both run in float32 on the CPU. Errors are the largest difference over
the largest value. The output of a single sublayer rounds more than the logits do, where it is small
beside the residual stream: ten times the tolerance is let pass there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mhc_model.checkpoint import MANIFEST, Checkpoint, load_checkpoint
from mhc_model.conversion.families import family_of
from mhc_model.conversion.sources import Source, read_source
from mhc_model.conversion.state_dicts import usual_keys
from mhc_model.decoder import Decoder
from mhc_model.engine import Engine, Request, SamplingParams
from mhc_model.errors import CheckpointError, ConfigError

PROMPTS = (
    "The capital of France is",
    "Question: Tom has 7 apples. He buys 5 more. How many apples does he have now?\nAnswer:",
    "Once upon a time there was a small village by the sea, and",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius because",
    "1, 2, 3, 5, 8, 13,",
    "The opposite of hot is",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, for the first time in history,",
    "La capitale de l'Italie est",
    "The three primary colours are",
    "A recipe for pancakes: mix the flour with",
    "SELECT name, age FROM people WHERE",
    "The speed of light is about",
    "Photosynthesis is the process by which plants",
    "To be, or not to be, that is",
    "The largest planet of the solar system is",
    "He opened the door slowly, looked into the dark room and",
    "3 + 4 = 7\n5 + 6 = 11\n8 + 9 =",
    "北京是中国的",
)


@dataclass(frozen=True)
class Equivalence:
    """How far a converted model is from its original.

    Attributes:
        tolerance: largest error of the logits allowed, and a tenth of a sublayer's.
        logits: error of the logits over all prompts.
        sublayers: error of each sublayer's output, attention and mlp of each layer in turn.
        generated: prompts whose greedy completions were compared.
        same: those of them that agree in every token.
    """

    tolerance: float
    logits: float
    sublayers: tuple[float, ...]
    generated: int
    same: int

    @property
    def passed(self) -> bool:
        close = self.logits <= self.tolerance and max(self.sublayers) <= 10 * self.tolerance
        return close and self.same == self.generated

    def __str__(self) -> str:
        worst = max(range(len(self.sublayers)), key=self.sublayers.__getitem__)
        kind = "mlp" if worst % 2 else "attention"
        return (
            f"{'equal' if self.passed else 'DIFFERENT'} at {self.tolerance:g}: logits "
            f"{self.logits:.2e}, worst sublayer {self.sublayers[worst]:.2e} ({kind} of layer "
            f"{worst // 2}), {self.same} of {self.generated} greedy completions the same"
        )


@dataclass(frozen=True)
class _Runnable:
    """A model as far as it is compared."""

    logits: Callable[[Tensor], Tensor]  # (1, t) -> (1, t, v)
    sublayers: Sequence[nn.Module]
    generate: Callable[[list[int], int], list[int]]
    vocab_size: int


def validate_equivalence(
    original: str | Path,
    converted: str | Path,
    tolerance: float = 1e-5,
    *,
    prompts: Sequence[str | Sequence[int]] | None = None,
    max_new_tokens: int = 16,
) -> Equivalence:
    """Compares a converted checkpoint with what it was made from.

    Args:
        original: what `convert` took, or a checkpoint of ours.
        converted: the checkpoint directory.
        tolerance: largest error allowed.
        prompts: texts or token ids; None takes 20 texts, or random ids without a tokenizer.
        max_new_tokens: of each greedy completion; 0 compares none.

    Raises:
        CheckpointError: if one of them cannot be read, or they have different sizes.
    """
    checkpoint = load_checkpoint(converted, dtype=torch.float32)
    ours, theirs = _our_model(checkpoint), _reference(original)
    if (ours.vocab_size, len(ours.sublayers)) != (theirs.vocab_size, len(theirs.sublayers)):
        raise CheckpointError(
            f"{converted} has {ours.vocab_size} token ids and {len(ours.sublayers)} sublayers, "
            f"{original} has {theirs.vocab_size} and {len(theirs.sublayers)}: not the same model"
        )
    rows = _token_rows(checkpoint, prompts, max_new_tokens)
    logits, sublayers, same = 0.0, [0.0] * len(ours.sublayers), 0
    for row in rows:
        found, parts = _run(ours, row)
        expected, their_parts = _run(theirs, row)
        logits = max(logits, relative_error(found, expected))
        errors = map(relative_error, parts, their_parts)
        sublayers = [max(pair) for pair in zip(sublayers, errors, strict=True)]
        if max_new_tokens:
            same += ours.generate(row, max_new_tokens) == theirs.generate(row, max_new_tokens)
    generated = len(rows) if max_new_tokens else 0
    return Equivalence(tolerance, logits, tuple(sublayers), generated, same)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def _token_rows(
    checkpoint: Checkpoint, prompts: Sequence[str | Sequence[int]] | None, new: int
) -> list[list[int]]:
    tokenizer, config = checkpoint.tokenizer, checkpoint.model.config
    if prompts is None:
        prompts = PROMPTS
        if tokenizer is None:
            generator = torch.Generator().manual_seed(0)
            length = max(1, min(32, config.max_seq_len - new))
            sizes = (len(PROMPTS), length)
            prompts = torch.randint(config.vocab_size, sizes, generator=generator).tolist()
    rows = []
    for prompt in prompts:
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ConfigError("the checkpoint has no tokenizer; give prompts as token ids")
            prompt = tokenizer.encode(prompt, bos=True)
        rows.append(list(prompt)[: config.max_seq_len - new])
    return rows


@torch.no_grad()
def _run(model: _Runnable, row: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits and the output of every sublayer."""
    with _recording(model.sublayers) as outputs:
        logits = model.logits(torch.tensor([row]))
    return logits, outputs


@contextmanager
def _recording(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _our_model(checkpoint: Checkpoint) -> _Runnable:
    model: Decoder = checkpoint.model
    engine = Engine(model, max_batch=1)

    def generate(row: list[int], new: int) -> list[int]:
        sampling = SamplingParams(max_tokens=new, ignore_eos=True)
        return list(engine.generate([Request(row, sampling=sampling)])[0].tokens)

    sublayers = [part for layer in model.layers for part in (layer.attention, layer.mlp)]
    return _Runnable(model, sublayers, generate, model.config.vocab_size)


def _reference(original: str | Path) -> _Runnable:
    if (Path(original) / MANIFEST).exists():
        return _our_model(load_checkpoint(original, dtype=torch.float32))
    source = read_source(original)
    model = transformers_model(source)
    family = family_of(source.entries, str(source.config_file))
    layers: int = model.config.num_hidden_layers
    paths = [path.replace("{i}", str(i)) for i in range(layers) for path in family.sublayers]

    def generate(row: list[int], new: int) -> list[int]:
        tokens = torch.tensor([row])
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(tokens)
        made = model.generate(tokens, attention_mask=mask, max_new_tokens=new, **options)
        return made[0, len(row) :].tolist()

    return _Runnable(
        lambda tokens: model(tokens).logits.float(),
        [model.get_submodule(path) for path in paths],
        generate,
        model.config.vocab_size,
    )


def transformers_model(source: Source) -> Any:
    """A source in transformers' own class, float32, eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family = family_of(source.entries, str(source.config_file))
    ours = family.model_config(source.entries, str(source.config_file))
    entries = {k: v for k, v in source.entries.items() if k not in ("model_type", "dtype")}
    config = AutoConfig.for_model(family.name, **entries)
    model = AutoModelForCausalLM.from_config(config).float()
    tensors = usual_keys(family, ours, source.tensors, source.file_of)
    missing, unexpected = model.load_state_dict(dict(tensors), strict=False)
    implied = (*family.ignored, *([family.head] if ours.tied else []))
    missing = [key for key in missing if not key.endswith(implied)]
    if unexpected or missing:
        raise CheckpointError(
            f"{source.name}: transformers' {family.architecture} misses {missing[:3]} and does not "
            f"know {unexpected[:3]}"
        )
    model.tie_weights()
    return model.eval()
