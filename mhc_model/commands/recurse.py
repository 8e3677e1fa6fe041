"""`python -m mhc_model recurse --checkpoint DIR --text FILE --question ...`: one session.

Prints the answer; what was spent and how it ended go to stderr. With --json-output all of it is
one JSON object on stdout, transcript included.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from mhc_model.errors import ConfigError, DataError
from mhc_model.recursion import SessionSettings
from mhc_model.settings import parse_command_line

if TYPE_CHECKING:
    from mhc_model.recursion import Answer, LanguageModel, Session

KEY_VARIABLE = "MHC_ENDPOINT_KEY"


class RecurseSettings(SessionSettings):
    """A text, a question, and the model that reads."""

    text: str = Field(description="file of UTF-8 text, plain or .gz")
    question: str = Field("", description="what to ask, if there is no program")
    program: str | None = Field(
        None, description="file with a program of verbs to run instead of the default strategy"
    )
    checkpoint: str | None = Field(None, description="checkpoint or run directory of the model")
    endpoint: str | None = Field(
        None,
        description="instead of a checkpoint: address of an OpenAI-compatible server; its key "
        f"comes from the environment variable {KEY_VARIABLE}",
    )
    model: str = Field("default", description="the model's name at the endpoint")
    context: int = Field(4096, ge=1, description="the context of the model at the endpoint")
    gates: float | tuple[float, ...] | str | None = Field(
        None,
        description="1, L or 2L numbers in [0, 1], the name of a behaviour of the model, or two of "
        "these with a colon between, for prompt and answer apart; none are the learned gates",
    )
    device: str = Field("auto", description='"auto" is CUDA if there is one')
    max_batch: int = Field(32, ge=1, description="prompts that the engine decodes at a time")
    json_output: bool = Field(False, description="print one JSON object, transcript included")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if there is an answer, 1 if there is none."""
    settings = parse_command_line(
        RecurseSettings, "python -m mhc_model recurse", __doc__ or "", argv
    )
    _check(settings)
    from mhc_model.gates import parse_gates
    from mhc_model.recursion import Session, index_for, run_program

    text = read_text(settings.text)
    program = None if settings.program is None else read_text(settings.program)
    model = _model(settings)
    gates = parse_gates(settings.gates) if isinstance(settings.gates, str) else settings.gates
    session = Session(index_for(text, model, settings), model, settings, gates)
    answer = session.ask(settings.question) if program is None else run_program(session, program)
    _print(session, answer, settings.json_output)
    return 0 if answer.text is not None else 1


def _check(settings: RecurseSettings) -> None:
    if (settings.checkpoint is None) == (settings.endpoint is None):
        raise ConfigError("give either --checkpoint or --endpoint: one model reads")
    if (settings.program is None) == (not settings.question.strip()):
        raise ConfigError("give either --question or --program")


def read_text(path: str) -> str:
    """The whole of a text file.

    Raises:
        DataError: naming the file, if it cannot be read or is not UTF-8.
    """
    try:
        if Path(path).suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return file.read()
        return Path(path).read_text(encoding="utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"text file {path} cannot be read: {error}") from None


def _model(settings: RecurseSettings) -> LanguageModel:
    from mhc_model.engine import Engine
    from mhc_model.recursion import EndpointModel, EngineModel

    if settings.endpoint is not None:
        key = os.environ.get(KEY_VARIABLE)
        return EndpointModel(settings.endpoint, settings.model, key, settings.context)
    engine = Engine.from_checkpoint(
        settings.checkpoint or "", settings.max_batch, device=settings.device
    )
    return EngineModel(engine)


def _print(session: Session, answer: Answer, as_json: bool) -> None:
    usage = session.usage
    if as_json:
        whole = {
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "detail": answer.detail,
            "passages": [passage.as_json() for passage in answer.passages],
            "usage": usage.as_json(),
            "transcript": session.transcript.as_json(),
        }
        print(json.dumps(whole, ensure_ascii=False, indent=2))
        return
    if answer.text is not None:
        print(answer.text)
    detail = "" if answer.detail is None else f" ({answer.detail})"
    print(
        f"{answer.finish_reason}{detail}: {usage.total_tokens} of {usage.budget_tokens} tokens, "
        f"{len(session.transcript.steps)} steps",
        file=sys.stderr,
    )
