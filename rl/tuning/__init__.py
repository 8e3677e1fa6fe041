"""One run of `python -m rl`: sweep, training, export, comparison.

In: an `RLConfig`. Out: the directory of the run, with its policy. May import everything of rl but
baselines, ablate and steerable.

    sweep.py       fixed gates: how much room there is
    difficulty.py  which problems are worth training on
    metrics.py     what a run says about an iteration
    run.py         `run_tuning`: from the start, or from where it stopped
"""

from rl.tuning.run import run_tuning

__all__ = [
    "run_tuning",
]
