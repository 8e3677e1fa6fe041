"""Training: documents to tokens to weights, data-parallel on Ray Train.

What comes in: a configuration and texts, or prepared shards. What goes out: the directory of a run,
with checkpoints that everything else loads. May import mhc_model and evals (problems, tasks), never
rl or serve.

Each of these imports only what stands before it:

    config/      what a run is: `TrainConfig`
    data/        documents -> the sequences of a step
    records/     what a run leaves in its directory
    loop/        sequences -> weights, in one worker; it knows nothing of Ray
    estimate.py  what a run will take, before it is started
    worker.py    the loop in a process of Ray Train
    launch.py    the driver: checks, starts Ray and the workers
    prepare/     a corpus -> shards, beforehand: a command of its own, on data/

`python -m train` reads its configuration before it imports anything else of these.
"""

__all__ = ["config", "data", "estimate", "launch", "prepare"]
