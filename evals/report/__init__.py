"""One document of many runs: tables, tests, pictures, limits and the draft of a write-up.

In: directories of what train, rl and evals left. Out: report.html, report.md and pictures/. May
import everything of evals but evals.harness.

    settings.py     configuration of `python -m evals.report`
    runs.py         trainings, evaluations and RL, read from their directories
    build.py        the report from first to last
    sections.py     its parts with pictures: routing, and what RL found
    choices.py      every choice of gates and words on the same problems
    control.py      what gates do to answers: tables and picture of a control.json
    words.py        its sentences: limits, and the draft
    token_kinds.py  which kinds of tokens are mixed, and where
    pictures.py     matplotlib figures, each with a twin of characters
    document.py     headings, tables and pictures as Markdown and HTML

Names are loaded when they are first used: the command reads its arguments without matplotlib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
