"""`python -m examples.study --config configs/study.yaml`; the same again goes on."""

from __future__ import annotations

from collections.abc import Sequence

from examples.study.config import StudyConfig
from mhc_model.settings import parse_command_line, reports_errors


def summary(config: StudyConfig) -> str:
    """What --dry-run says besides."""
    from examples.study.study import outlook

    return outlook(config)


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    config = parse_command_line(
        StudyConfig,
        "python -m examples.study",
        "Compares variants of the model over seeds, and gates by RL on each of them.",
        argv,
        summary,
    )
    from examples.study.study import run_study

    run_study(config)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
