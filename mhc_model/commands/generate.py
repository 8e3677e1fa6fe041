"""`python -m mhc_model generate`: the answers of checkpoints or gates, side by side.

python -m mhc_model generate runs/mhc --gates learned 0 --prompt "Question: ..."
python -m mhc_model generate runs/baseline runs/mhc
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from pydantic import Field
from tyro.conf import Positional

from mhc_model.errors import ConfigError
from mhc_model.settings import Settings, parse_command_line

if TYPE_CHECKING:
    from mhc_model.engine import Completion

PROMPT = (
    "Question: Tom has 7 apples and buys 5 more apples. How many apples does Tom have now?\nAnswer:"
)


class GenerateSettings(Settings):
    """Configuration of `python -m mhc_model generate`."""

    checkpoints: Positional[tuple[str, ...]] = Field(
        min_length=1, description="one checkpoint or run directory, or several to compare"
    )
    gates: tuple[str, ...] = Field(
        ("learned",),
        min_length=1,
        description="learned; numbers separated by commas; the name of a behaviour; or two of "
        "these with a colon between, for prompt and answer; several to compare them",
    )
    prompt: str = Field(PROMPT, min_length=1, description="text to continue")
    max_tokens: int = Field(64, ge=1, description="most tokens of an answer")
    temperature: float = Field(0.0, ge=0.0, description="0 is greedy")
    seed: int = Field(0, ge=0, description="of the sampling")
    device: str = Field("auto", description="cpu, cuda, cuda:0, ...; auto is CUDA if there is one")
    width: int | None = Field(
        None, ge=40, description="characters of a line; none is the terminal's width"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Generates and prints the columns."""
    settings = parse_command_line(
        GenerateSettings,
        "mhc_model generate",
        "Continues a prompt with several checkpoints or gates, side by side.",
        argv,
    )
    answers = answers_of(settings)
    width = settings.width or shutil.get_terminal_size((120, 20)).columns
    print(settings.prompt + "\n")
    print(columns({label: text_of(answer) for label, answer in answers.items()}, width))
    return 0


def answers_of(settings: GenerateSettings) -> dict[str, Completion]:
    """One completion for every checkpoint with every gate setting, by label.

    Raises:
        MHCError: of a checkpoint, the gates or the prompt's length.
    """
    from mhc_model.engine import Engine, Request, SamplingParams
    from mhc_model.gates import parse_gates

    answers: dict[str, Completion] = {}
    sampling = SamplingParams(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        logprobs=True,
    )
    for path in settings.checkpoints:
        engine = Engine.from_checkpoint(path, len(settings.gates), device=settings.device)
        if engine.tokenizer is None:
            raise ConfigError(f"{path} has no tokenizer; a text prompt needs one")
        prompt = engine.tokenizer.encode(settings.prompt, bos=True)
        config = engine.model.config
        # A model without gates beside others answers once.
        choices = settings.gates if config.gateless is None else ("learned",)
        requests = [Request(prompt, parse_gates(choice), sampling) for choice in choices]
        for choice, answer in zip(choices, engine.generate(requests), strict=True):
            how = "plain" if config.mhc is None else f"gates {choice}"
            answers[f"{path}, {how}"] = answer
    return answers


def text_of(answer: Completion) -> str:
    """The answer, how likely the model found it, and why it ended."""
    total = sum(answer.logprobs or ())
    return (
        f"{answer.text}\n\n{len(answer.tokens)} tokens ({answer.finish_reason}), log-probability "
        f"{total:.4f}"
    )


def columns(texts: dict[str, str], width: int) -> str:
    """Texts beside each other, each under its label, wrapped to its share of the width."""
    own = max(12, (width - 3 * (len(texts) - 1)) // len(texts))
    blocks = []
    for label, text in texts.items():
        lines = [*textwrap.wrap(label, own), "-" * own]
        for line in text.splitlines():
            lines += textwrap.wrap(line, own) or [""]
        blocks.append(lines)
    # Labels of different heights: the rules are put on one line.
    heads = [block.index("-" * own) for block in blocks]
    blocks = [
        block[:head] + [""] * (max(heads) - head) + block[head:]
        for block, head in zip(blocks, heads, strict=True)
    ]
    rows = zip_longest(*blocks, fillvalue="")
    return "\n".join(" | ".join(cell.ljust(own) for cell in row).rstrip() for row in rows)
