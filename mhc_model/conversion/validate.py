"""Whether a converted model is the original: logits, every sublayer, and what is generated.

The original runs in transformers' own class, so the check does not rest on our decoder; or it is
another checkpoint of ours. They run one after the other, in float32 on the CPU. Errors are the
largest difference over the largest value. The output of a single sublayer rounds more than the
logits do, where it is small beside the residual stream: ten times the tolerance is let pass there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mhc_model.checkpoint import Checkpoint, is_own, load_checkpoint, unfilled
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
    # One model at a time: what the first one gives waits on the disk.
    with TemporaryDirectory(prefix="validate-") as directory:
        rows, completions, size = _run_converted(
            converted, prompts, max_new_tokens, Path(directory)
        )
        theirs = _reference(original)
        if size != (theirs.vocab_size, len(theirs.sublayers)):
            raise CheckpointError(
                f"{converted} has {size[0]} token ids and {size[1]} sublayers, {original} has "
                f"{theirs.vocab_size} and {len(theirs.sublayers)}: not the same model"
            )
        logits, sublayers, same = 0.0, [0.0] * size[1], 0
        for number, (row, made) in enumerate(zip(rows, completions, strict=True)):
            found = load_file(_file_of(Path(directory), number))
            expected = _run(theirs, row, made)
            logits = max(logits, relative_error(found["logits"], expected["logits"]))
            for k in range(size[1]):
                error = relative_error(found[f"sublayer {k}"], expected[f"sublayer {k}"])
                sublayers[k] = max(sublayers[k], error)
            same += bool(made) and torch.equal(expected["greedy"], torch.tensor(made))
    generated = len(rows) if max_new_tokens else 0
    return Equivalence(tolerance, logits, tuple(sublayers), generated, same)


def _run_converted(
    converted: str | Path,
    prompts: Sequence[str | Sequence[int]] | None,
    new: int,
    directory: Path,
) -> tuple[list[list[int]], list[list[int]], tuple[int, int]]:
    """Runs the converted model and forgets it.

    Returns:
        The prompts, their greedy completions, and the sizes of vocabulary and depth; a file of
        `directory` has what `_run` gives of each prompt.
    """
    checkpoint = load_checkpoint(converted, dtype=torch.float32)
    rows = _token_rows(checkpoint, prompts, new)
    completions: list[list[int]] = [[] for _ in rows]
    if new:
        longest = new + max(map(len, rows))
        most = min(len(rows), 32)
        engine = Engine(checkpoint.model, max_batch=most, max_seq_len=longest, prefix_cache_bytes=0)
        sampling = SamplingParams(max_tokens=new, ignore_eos=True)
        requests = [Request(row, sampling=sampling) for row in rows]
        completions = [list(done.tokens) for done in engine.generate(requests)]
    ours = _our_model(checkpoint)
    for number, (row, made) in enumerate(zip(rows, completions, strict=True)):
        save_file(_run(ours, row, made), _file_of(directory, number))
    return rows, completions, (ours.vocab_size, len(ours.sublayers))


def _file_of(directory: Path, number: int) -> Path:
    return directory / f"{number}.safetensors"


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
def _run(model: _Runnable, row: Sequence[int], made: Sequence[int]) -> dict[str, Tensor]:
    """What a model makes of a prompt, and of a completion behind it.

    Args:
        model: to run, once.
        row: the prompt.
        made: a greedy completion, of whichever model. It is this one's too if at each of its
            tokens this model prefers that token.

    Returns:
        `logits` (t, v) and the outputs `sublayer K` (t, c) over the prompt, and `greedy`, the
        tokens that the model prefers along the completion.
    """
    t = len(row)
    with _recording(model.sublayers) as outputs:
        logits = model.logits(torch.tensor([[*row, *made[:-1]]]))[0]
    kept = {f"sublayer {k}": output[0, :t].contiguous() for k, output in enumerate(outputs)}
    greedy = logits[t - 1 :].argmax(dim=-1)[: len(made)]
    return kept | {"logits": logits[:t].contiguous(), "greedy": greedy}


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
    sublayers = [part for layer in model.layers for part in (layer.attention, layer.mlp)]
    return _Runnable(model, sublayers, model.config.vocab_size)


def _reference(original: str | Path) -> _Runnable:
    if is_own(original):
        return _our_model(load_checkpoint(original, dtype=torch.float32))
    source = read_source(original)
    model = transformers_model(source)
    family = family_of(source.entries, str(source.config_file))
    layers: int = model.config.num_hidden_layers
    paths = [path.replace("{i}", str(i)) for i in range(layers) for path in family.sublayers]
    return _Runnable(
        lambda tokens: model(tokens, use_cache=False).logits.float(),
        [model.get_submodule(path) for path in paths],
        model.config.vocab_size,
    )


def transformers_model(source: Source) -> Any:
    """A source in transformers' own class, float32, eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family = family_of(source.entries, str(source.config_file))
    ours = family.model_config(source.entries, str(source.config_file))
    entries = {k: v for k, v in source.entries.items() if k not in ("model_type", "dtype")}
    config = AutoConfig.for_model(family.name, **entries)
    with unfilled():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = usual_keys(family, ours, source.tensors, source.file_of)
    floats = {key: value.float() for key, value in tensors.items()}
    missing, unexpected = model.load_state_dict(floats, strict=False, assign=True)
    implied = (*family.ignored, *([family.head] if ours.tied else []))
    missing = [key for key in missing if not key.endswith(implied)]
    if unexpected or missing:
        raise CheckpointError(
            f"{source.name}: transformers' {family.architecture} misses {missing[:3]} and does not "
            f"know {unexpected[:3]}"
        )
    model.tie_weights()
    return model.eval()
