"""`python -m mhc_model COMMAND ...`: what works on one model without Ray.

Each command is a module with `main(argv) -> int`; `python -m mhc_model COMMAND --help` tells more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from mhc_model.settings import reports_errors

# Command -> its module and what it does. Modules are imported only when they are called.
COMMANDS = {
    "convert": ("mhc_model.conversion.convert", "make a checkpoint of a pretrained model"),
    "export": ("mhc_model.conversion.export", "write a checkpoint for transformers' own class"),
    "generate": ("mhc_model.generation", "answers of checkpoints or gates, side by side"),
    "inspect": ("mhc_model.routing.command", "streams, gates and mixing of a checkpoint"),
    "validate": ("mhc_model.conversion.validate", "compare a converted model with its original"),
    "validate-model": (
        "mhc_model.checkpoint.validate",
        "is a checkpoint whole, does it work",
    ),
    "recurse": ("mhc_model.recursion.command", "answer a question about a text of any length"),
}


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status, 2 for a user's error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    status: int = import_module(COMMANDS[name][0]).main(arguments[1:])
    return status


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {purpose}" for name, (_, purpose) in sorted(COMMANDS.items()))
    return "\n".join(["usage: python -m mhc_model COMMAND [options]", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
