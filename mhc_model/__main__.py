"""`python -m mhc_model COMMAND ...`: what works on one model without Ray.

Each command is a module of commands/; `python -m mhc_model COMMAND --help` tells more.
"""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

import sys
from collections.abc import Sequence
from importlib import import_module

from mhc_model.settings import reports_errors

# Command -> what it does; its module, in commands/, is imported only when it is called.
COMMANDS = {
    "convert": "make a checkpoint of a pretrained model",
    "export": "write a checkpoint for transformers' own class",
    "generate": "answers of checkpoints or gates, side by side",
    "inspect": "streams, gates and mixing of a checkpoint",
    "validate": "compare a converted model with its original",
    "validate-model": "is a checkpoint whole, does it work",
    "recurse": "answer a question about a text of any length",
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
    command = import_module(f"mhc_model.commands.{name.replace('-', '_')}")
    status: int = command.main(arguments[1:])
    return status


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {purpose}" for name, purpose in sorted(COMMANDS.items()))
    return "\n".join(["usage: python -m mhc_model COMMAND [options]", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
