"""What runs the rooms' own commands one after the other, as a user would type them.

In: configurations. Out: directories of runs, evaluations and reports. May import mhc_model and
evals; train, rl and serve are run as commands, never imported.

    demo.py   the whole chain on the built-in problems (`make demo`)
    study/    several seeds and variants of the model, compared
"""

__all__ = ["demo", "study"]
