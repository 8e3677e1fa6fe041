"""A corpus becomes tokenized shards: `python -m train.prepare --source ... --out DIR`.

In: a data set of the hub, or files. Out: a directory that `train.data.ShardedTokens` reads, with
the same bytes however often the work was interrupted. May import train.data, mhc_model and the
problems of evals.

    config.py   `PrepareConfig`
    sources.py  `CorpusSource`: a source in parts that can be read apart from each other
    part.py     `Job`: one part -> its shards
    run.py      `prepare`: all parts, or the rest of them, and the manifest
    on_ray.py   `RayTasks`: the parts as tasks of Ray Data
    styles.py   `python -m train.prepare.styles`: problems as rows in answer styles

Names are loaded when they are first used: a command that only reads its settings needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
