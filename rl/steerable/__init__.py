"""A controlled task whose right gates are known: does RL find them?

In: a `SteerableConfig`. Out: a model, an ablation for every variant of the task, and what of the
promised came out. May import rl.ablate, rl.directory, evals and mhc_model.

    task.py      problems, and the gates that are right for each
    config.py    `SteerableConfig`
    training.py  the model that obeys its gates
    proof.py     `prove`: model, ablations, checks

Names are loaded when they are first used: a command that only reads its settings needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
