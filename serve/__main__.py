"""`python -m serve --checkpoint DIR [--policy DIR] [--port 8000]`: the model over HTTP.

Runs until SIGINT or SIGTERM; then it finishes what was accepted, and ends Serve and, if it started
one, the Ray cluster. API keys come from --api-keys-file and the environment variable MHC_API_KEYS.
"""

from __future__ import annotations

from mhc_model.running import doing, supervise

if __name__ == "__main__":
    supervise(__spec__)

import os
import sys
from collections.abc import Sequence

from mhc_model.settings import parse_command_line, reports_errors
from serve.settings import ServeSettings


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    settings = parse_command_line(ServeSettings, "python -m serve", __doc__ or "", argv)
    # torch and Ray take seconds to load: not for --help, nor for a mistake in an option.
    with doing("checking the model"):
        from serve.checks import check_settings

        settings = check_settings(settings)
    # Ray reads the authentication mode while it is imported, so this comes first.
    ray_arguments = settings.ray.init_arguments()
    # Of its own accord Ray's driver drops lines that look alike, and those of a log do.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    with doing("loading Ray"):
        from serve.launch import launch

    launch(settings, ray_arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
