"""Text from text, in one call.

generate("runs/mhc", "Question: ...", gates=0.5)  # in a notebook
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mhc_model.engine import Completion, Engine, Request, SamplingParams
from mhc_model.errors import EngineError
from mhc_model.gates import RequestGates


def generate(
    model: Engine | str | Path,
    prompts: str | Sequence[str],
    gates: RequestGates = None,
    **sampling: object,
) -> list[str]:
    """Completes texts.

    Args:
        model: an idle engine, or a checkpoint or run directory, which is loaded for this call.
        prompts: one or several.
        gates: for all of them, as `resolve_gates` takes them; None is the learned gates.
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
    engine: Engine, prompts: Sequence[str], gates: RequestGates, sampling: SamplingParams
) -> list[Completion]:
    if engine.tokenizer is None:
        raise EngineError("the checkpoint has no tokenizer: give Engine.generate token ids")
    rows = engine.tokenizer.encode_batch(list(prompts), bos=True)
    return engine.generate([Request(row, gates=gates, sampling=sampling) for row in rows])
