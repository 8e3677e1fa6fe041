"""Text from one checkpoint, or the same prompts through several, side by side.

python -m mhc_model generate --checkpoints runs/a runs/b --prompts "Once upon a time"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mhc_model.engine import Engine
from mhc_model.errors import ConfigError, EngineError
from mhc_model.gates import GateValues
from mhc_model.request import Completion, Request, SamplingParams
from mhc_model.settings import Settings, parse_command_line


def generate(
    model: Engine | str | Path,
    prompts: str | Sequence[str],
    gates: GateValues | None = None,
    **sampling: object,
) -> list[str]:
    """Completes texts.

    Args:
        model: an idle engine, or a checkpoint or run directory, which is loaded for this call.
        prompts: one or several.
        gates: for all of them, as `expand_gates` takes them; None is the learned gates.
        sampling: fields of `SamplingParams`: max_tokens, temperature, top_p, seed, stop, ...

    Returns:
        The completions in order.

    Raises:
        EngineError: for bad sampling, prompts that do not fit, or a model without a tokenizer.
        GateError: for bad gates.
        CheckpointError: if there is no checkpoint.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    try:
        parameters = SamplingParams(**sampling)  # type: ignore[arg-type]  # it checks them itself
    except TypeError as error:
        raise EngineError(f"unknown sampling parameter: {error}") from None
    engine = model if isinstance(model, Engine) else _engine(model, len(texts))
    return [completion.text or "" for completion in _complete(engine, texts, gates, parameters)]


def _engine(checkpoint: str | Path, prompts: int) -> Engine:
    return Engine.from_checkpoint(checkpoint, max_batch=max(1, min(prompts, 8)))


def _complete(
    engine: Engine, prompts: Sequence[str], gates: GateValues | None, sampling: SamplingParams
) -> list[Completion]:
    if engine.tokenizer is None:
        raise EngineError("the checkpoint has no tokenizer: give Engine.generate token ids")
    rows = engine.tokenizer.encode_batch(list(prompts), bos=True)
    return engine.generate([Request(row, gates=gates, sampling=sampling) for row in rows])


class GenerateSettings(Settings):
    """Arguments of the command."""

    checkpoints: tuple[str, ...] = Field(
        min_length=1, description="checkpoint or run directories: the same prompts through each"
    )
    prompts: tuple[str, ...] = Field(min_length=1, description="texts to complete")
    gates: str = Field("learned", description="learned; or 1, L or 2L numbers separated by commas")
    max_tokens: int = Field(64, ge=1, description="most tokens of a completion")
    temperature: float = Field(0.0, ge=0.0, description="0 is greedy")
    seed: int = Field(0, ge=0, description="of the sampling")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    settings = parse_command_line(
        GenerateSettings, "python -m mhc_model generate", __doc__ or "", argv
    )
    options = {
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "seed": settings.seed,
    }
    columns = []
    for path in settings.checkpoints:
        engine = _engine(path, len(settings.prompts))
        gates = None if engine.model.config.mhc is None else _parse_gates(settings.gates)
        columns.append(generate(engine, settings.prompts, gates, **options))
    for prompt, *completions in zip(settings.prompts, *columns, strict=True):
        print(f"=== {prompt}")
        for path, text in zip(settings.checkpoints, completions, strict=True):
            print(f"--- {path}\n{text}")
    return 0


def _parse_gates(text: str) -> list[float] | None:
    if text == "learned":
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"gates are {text!r}; give 'learned' or numbers in [0, 1] separated by commas"
        ) from None
