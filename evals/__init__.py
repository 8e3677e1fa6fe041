"""How good a model is: problems and tasks, scores with intervals, comparisons, a report.

In: a checkpoint, gates, problems or texts. Out: results.json and samples.jsonl in a directory, and
what is made of several of them. Imports mhc_model and nothing beside it.

In the order in which they may import each other, from the ground up:

    settings.py     configuration of `python -m evals`, names of the tasks
    statistics.py   intervals and tests
    paired.py       two runs on the same problems, tested
    problems/       where questions come from
    tasks/          what is asked of a model, and how answers are scored
    store.py        samples.jsonl while a run goes on
    results.py      the files of a run, read and written; its tables
    compare.py      runs side by side: `python -m evals.compare`
    gate_choice.py  the --gates argument
    measure/        latency, memory, fewer Sinkhorn iterations
    plans.py        settings and an engine to plans
    replicas.py     several engines for one evaluation
    run.py          one evaluation: `python -m evals`
    report/         one document of many runs: `python -m evals.report`
    harness/        lm-evaluation-harness beside it: `python -m evals.harness`
    control/        what gates do to answers: `python -m evals.control`

report/ and harness/ do not know each other. Who only reads problems or results needs no torch.
"""

__all__ = [
    "compare",
    "control",
    "gate_choice",
    "measure",
    "problems",
    "report",
    "results",
    "settings",
    "statistics",
    "store",
    "tasks",
]
