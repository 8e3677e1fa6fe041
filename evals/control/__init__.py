"""What gates do to answers: their style, whether they are right, how long they are.

In: a checkpoint whose model has behaviours, held-out problems. Out: control.json with figures for
each behaviour, for gates between neighbours and for the learned gates; the samples; a picture. May
import everything of evals but evals.harness.

    settings.py  configuration of `python -m evals.control`
    points.py    the gates that are measured, in order
    figures.py   shares of styles, accuracy, tokens and leakage of some samples
    measure.py   one run from first to last

Names are loaded when they are first used: the command reads its arguments without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
