"""The study: variants of the model over several seeds, at the same tokens and at the same time.

In: a configuration with those of training, evaluation and ablation in it. Out: a directory with all
runs, and study.md and study.json, which say what is shown and what is not. May import mhc_model and
evals; the rooms' commands are run as processes.

    config.py     `StudyConfig`: configuration of `python -m examples.study`
    values.py     overrides of configurations by dotted keys
    plan.py       the steps of a study: which command with which configuration, in which order
    run.py        runs the steps in lanes, passes over what is whole, says how long the rest takes
    study.py      one study from start to end, or from where it stopped
    calibrate.py  how long a step of each variant takes, measured in turn
    seeds.py      statistics of one number a seed: intervals, exact tests, pooled problems
    results.py    reads what the steps left
    findings.py   differences between variants, and between gates
    gates.py      what RL over gates brought on each seed's models
    pictures.py   curves and dots
    report.py     study.md and study.json

Names are loaded when they are first used: the command reads its arguments without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
