"""Action spaces of PPO and other ways to choose gates, beside each other on held-out problems.

In: an `AblateConfig`: a checkpoint, problems, arms. Out: a report, and what each arm found. May
import everything of rl but steerable, and of evals the statistics, samples and reports.

    arms.py      the arms' names, and what each needs to learn
    config.py    `AblateConfig`
    study.py     `Study`: what all arms share, and how each learns
    held_out.py  `HeldOut`: an arm's answers to the held-out problems
    findings.py  `Findings`: accuracies, paired tests, a bound
    report.py    tables and pictures
    run.py       `run_ablation`: from the start, or from where it stopped

Names are loaded when they are first used: a command that only reads its settings needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
