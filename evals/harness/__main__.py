"""lm-evaluation-harness on our checkpoints, with gates: its model `mhc-gates` over our engine.

    python -m evals.harness --checkpoint CKPT --gates 0.5 --tasks hellaswag --data DIR --limit 200
    python -m evals.harness --checkpoint CKPT --tasks arc_easy --data DIR --backend hf

The second line uses the harness's own `hf` model on the same directory. `--agree OUT` compares
every sample with those of `python -m evals` in OUT.
"""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

import json
from collections.abc import Sequence
from pathlib import Path

from evals.harness.agreement import agreement
from evals.harness.settings import HarnessSettings
from evals.settings import SCORED
from mhc_model.files import replace_text
from mhc_model.settings import parse_command_line, reports_errors


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where samples disagree, or 2 after an error of the user's."""
    settings = parse_command_line(
        HarnessSettings, "evals.harness", "lm-evaluation-harness on our checkpoints.", argv
    )
    # Here, so that --help and mistyped flags need not wait for the harness to be imported.
    from evals.harness.command import run

    results = run(settings)
    if settings.out is not None:
        replace_text(Path(settings.out), json.dumps(results, default=str) + "\n")
    for task, scores in results["results"].items():
        print(task, json.dumps({k: v for k, v in scores.items() if isinstance(v, float)}))
    if settings.agree is None:
        return 0
    found = agreement(
        results, Path(settings.agree), [task for task in settings.tasks if task in SCORED]
    )
    for task in found:
        print(task.line())
    return 0 if all(task.agrees for task in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
