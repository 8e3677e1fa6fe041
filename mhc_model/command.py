"""What the commands share: how an error that the user can mend ends them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from mhc_model.errors import MHCError

P = ParamSpec("P")


def reports_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Turns an `MHCError` of a command into a line on standard error and the exit status 2."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except MHCError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return guarded
