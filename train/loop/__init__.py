"""The training loop of one worker: sequences to weights.

In: a `TrainConfig`, a `Corpus`, a `RunDirectory` and the other workers, a `ProcessGroup`. Out: a
model that has learned, rows of metrics, checkpoints by way of a `Persist` function. May import
train.config, train.data, train.records, mhc_model and the tasks of evals; nothing of Ray.

    process_group.py  the workers that train together
    hardware.py       what a device can do, repeatable results
    objective.py      `Objective`: the loss, and the gates that each sequence has
    optimizer.py      `Optimizers`: groups of parameters, AdamW and Muon
    validation.py     held-out loss under own and fixed gates
    samples.py        texts for a person to read
    trainer.py        `Trainer`: step by step, from the newest checkpoint to the last step
"""

from train.loop.hardware import device_peak_tflops, make_deterministic, peak_memory, peak_tflops
from train.loop.objective import (
    GateNoise,
    GroupGates,
    Objective,
    draw_gate_noise,
    noise_width,
)
from train.loop.optimizer import Optimizers, group_parameters
from train.loop.process_group import ProcessGroup
from train.loop.samples import check_samples, write_samples
from train.loop.trainer import Persist, Trainer, make_batches
from train.loop.validation import AnswerValidation, Validation

__all__ = [
    "AnswerValidation",
    "GateNoise",
    "GroupGates",
    "Objective",
    "Optimizers",
    "Persist",
    "ProcessGroup",
    "Trainer",
    "Validation",
    "check_samples",
    "device_peak_tflops",
    "draw_gate_noise",
    "group_parameters",
    "make_batches",
    "make_deterministic",
    "noise_width",
    "peak_memory",
    "peak_tflops",
    "write_samples",
]
