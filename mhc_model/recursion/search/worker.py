"""The process that reads a long text: a line of JSON and the text in, `pack`'s bytes out.

Whoever started it waits, so it steps back for the threads that serve.
"""

from __future__ import annotations

import json
import os
import sys

from mhc_model.recursion.search.lexical import pack, read_here


def main() -> None:
    """Reads standard input, writes standard output."""
    os.nice(10)
    sizes = json.loads(sys.stdin.buffer.readline())
    text = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    sys.stdout.buffer.write(pack(read_here(text, **sizes)))


if __name__ == "__main__":
    main()
