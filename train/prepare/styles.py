"""`python -m train.prepare.styles --source ... --styles direct worked --out FILE`: problems as rows
in answer styles.

Every problem becomes a row for each style: question, answer in that style, and the style as the
row's behaviour. Training takes such a file (data.files, or shards of it), and learns each row under
the gates of its behaviour. Answers that have no form in a style are left out of it, and counted.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from evals.problems import Problem, Style, load_problems, restyle, style_of
from mhc_model.errors import ConfigError, DataError
from mhc_model.files import replace_bytes
from mhc_model.running import supervise
from mhc_model.settings import Settings, parse_command_line, reports_errors


class StylesConfig(Settings):
    """Which problems, in which styles, and where the rows go."""

    source: str = Field(
        description="a file of JSON lines with question and answer in GSM8K's format (.jsonl, "
        ".jsonl.gz), a directory with {split}.jsonl, builtin:1 or builtin:1,2, or a hub name such "
        "as openai/gsm8k"
    )
    styles: tuple[Style, ...] = Field(
        ("direct", "worked"),
        min_length=1,
        description="'direct' is `#### N` alone, 'brief' the calculations without sentences, "
        "'worked' the answer as it is",
    )
    out: str = Field(description="file of the rows, .jsonl or .jsonl.gz")
    split: Literal["train", "test"] = Field(
        "train", description="of a directory, a data set or the built-in problems"
    )
    limit: int | None = Field(
        None, ge=1, description="the first N problems; none takes all, of built-in ones 1,000"
    )
    seed: int = Field(0, ge=0, description="of the built-in problems")

    @field_validator("styles")
    @classmethod
    def _check_styles(cls, styles: tuple[Style, ...]) -> tuple[Style, ...]:
        for style in styles:
            if styles.count(style) > 1:
                raise ValueError(f"{style!r} is named twice")
        return styles

    @field_validator("out")
    @classmethod
    def _check_out(cls, out: str) -> str:
        if not out.removesuffix(".gz").endswith(".jsonl"):
            raise ValueError("the file must end in .jsonl or .jsonl.gz, or training reads no rows")
        return out


def in_style(problem: Problem, style: Style) -> Problem | None:
    """The problem answered in a style; None if its answer has no such form."""
    try:
        found = restyle(problem, style)
    except DataError:
        return None
    # Told by the rule that tells a model's answers: some worked answers have no word in them.
    return found if style_of(found.answer) == style else None


def write_rows(config: StylesConfig) -> dict[Style, int]:
    """Writes the file, whole or not at all.

    Returns:
        Rows of each style.

    Raises:
        DataError: if the source is missing or malformed; it names file and line.
        ConfigError: if the file cannot be written.
    """
    problems = load_problems(config.source, config.split, config.limit, config.seed)
    counts: dict[Style, int] = dict.fromkeys(config.styles, 0)
    lines = []
    for place in range(len(problems)):
        # The other forms of a problem are far away: in a sequence they would give the answer away.
        for number, style in enumerate(config.styles):
            turn = number * len(problems) // len(config.styles)
            found = in_style(problems[(place + turn) % len(problems)], style)
            if found is None:
                continue
            row = {"question": found.question, "answer": found.answer, "behaviour": style}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            counts[style] += 1
    content = "".join(lines).encode()
    path = Path(config.out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    except OSError as error:
        raise ConfigError(f"out {config.out} cannot be written: {error}") from None
    for style, count in counts.items():
        left = f", {len(problems) - count:,} without that form left out"
        print(f"{style}: {count:,} rows{left if count < len(problems) else ''}", flush=True)
    print(f"{len(lines):,} rows of {len(problems):,} problems in {config.out}", flush=True)
    return counts


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    prog = "python -m train.prepare.styles"
    write_rows(parse_command_line(StylesConfig, prog, __doc__ or "", argv))
    return 0


if __name__ == "__main__":
    supervise(__spec__)
    sys.exit(main())
