"""`python -m evals.control`: what each behaviour of a model, and the gates between, do to answers.

python -m evals.control --checkpoint runs/mhc --data builtin:1,2 --limit 400 --out runs/control
"""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

from collections.abc import Sequence
from pathlib import Path

from evals.control.settings import ControlSettings
from mhc_model.settings import parse_command_line, reports_errors


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    settings = parse_command_line(
        ControlSettings,
        "evals.control",
        "Measures control: style, accuracy and length of answers under each behaviour's gates and "
        "between them.",
        argv,
    )
    # Here, so that --help and mistyped flags need not wait for torch and matplotlib.
    from evals.control.measure import measure_control
    from evals.report import CONTROL, control_tables

    found = measure_control(settings)
    for title, table in control_tables(found):
        print(f"\n{title}\n\n{table}")
    out = Path(settings.out)
    print(f"\nfigures: {out / CONTROL}\npicture: {out / 'control.png'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
