"""`python -m evals.report RUN...`: one report of trainings, evaluations and RL.

Writes report.html (self-contained), report.md and pictures/ (SVG and PNG).

python -m evals.report runs/demo --out runs/demo/report
"""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

from collections.abc import Sequence
from pathlib import Path

from evals.report.settings import HTML, MARKDOWN, PICTURES, ReportSettings
from mhc_model.settings import parse_command_line, reports_errors


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    settings = parse_command_line(ReportSettings, "evals.report", "Writes a report of runs.", argv)
    # Here, so that --help and mistyped flags need not wait for torch and matplotlib.
    from evals.report.build import make_report

    document = make_report(settings)
    print(f"{Path(settings.out) / HTML}\n{Path(settings.out) / MARKDOWN}")
    print(f"{len(document.pictures)} pictures in {Path(settings.out) / PICTURES}")
    if settings.ascii:
        for picture in document.pictures:
            print(f"\n{picture.title}. {picture.caption}\n{picture.text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
