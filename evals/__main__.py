"""`python -m evals`: evaluates one checkpoint with one choice of gates.

python -m evals --checkpoint runs/mhc --tasks gsm8k bpb --data builtin:1 --limit 400 --out runs/e
"""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

from collections.abc import Sequence
from pathlib import Path

from evals.results import RESULTS, results_table
from evals.settings import EvalSettings
from mhc_model.settings import parse_command_line, reports_errors


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    settings = parse_command_line(
        EvalSettings,
        "evals",
        "Evaluates a checkpoint: GSM8K, HellaSwag, ARC-Easy, text, latency, memory.",
        argv,
    )
    # Here, so that --help and mistyped flags need not wait for torch.
    from evals.run import run

    results = run(settings)
    print(f"\ngates: {results['gates']['description']}\n")
    print(results_table(results))
    print(f"\nresults: {Path(settings.out) / RESULTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
