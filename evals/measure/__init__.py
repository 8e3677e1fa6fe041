"""What a model costs and how far its projection is off; nothing here knows of tasks.

In: models, or the path of a checkpoint. Out: figures as results.json has them. May import
mhc_model only.

    latency.py   milliseconds of a prompt and of a token, models in turn
    memory.py    peak memory, in a process of its own: `python -m evals.measure.memory`
    sinkhorn.py  fewer Sinkhorn-Knopp iterations at inference, and the errors of H_res then
    machine.py   versions and hardware

Names are loaded when they are first used: that process reads its command line without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
