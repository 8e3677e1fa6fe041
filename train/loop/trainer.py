"""The training loop of one worker. It knows torch.distributed, and nothing of Ray."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from mhc_model.checkpoint import load_checkpoint
from mhc_model.decoder import Decoder
from mhc_model.errors import DataError, MHCError
from mhc_model.running import Heartbeat, scratch_directory
from train.config import TrainConfig
from train.data import (
    AnswerBatches,
    AnswerCorpus,
    Batches,
    Corpus,
    ReadAhead,
    describe_group,
)
from train.loop.hardware import device_peak_tflops, peak_memory
from train.loop.objective import GateNoise, GroupGates, Objective, draw_gate_noise, noise_width
from train.loop.optimizer import Optimizers, freeze_all_but_mhc
from train.loop.process_group import ProcessGroup
from train.loop.samples import write_samples
from train.loop.validation import AnswerValidation, Validation
from train.records import (
    Best,
    MetricsLog,
    Progress,
    RunDirectory,
    find_resume,
    load_step,
    make_trackers,
    save_step,
    step_name,
)

Persist = Callable[[int, dict[str, Any], Path | None], None]
"""persist(step, metrics, directory) stores a checkpoint as step-... of the run and returns when it
is there. Every worker calls it; only rank 0 has a directory."""


def make_batches(config: TrainConfig, corpus: Corpus) -> Batches | AnswerBatches:
    """The sequences of every step.

    Raises:
        DataError: if the corpus is smaller than one step, or the rows of a group fill no sequence.
    """
    sizes = (config.context, config.batch_sequences, config.seed)
    if isinstance(corpus, AnswerCorpus):
        batches = AnswerBatches(corpus.training, *sizes, corpus.tokenizer.eos_id)
    else:
        batches = Batches(corpus.tokens, *sizes)
    for number, (group, rows, first) in enumerate(corpus.groups):
        if rows and not batches.count_sequences(number):
            raise DataError(
                f"the {rows} training rows with {describe_group(group)} (the first: {first}) fill "
                f"not one sequence of {config.context} tokens, and share none with others; give "
                f"more of them, or another sequence_length"
            )
    return batches


class Trainer:
    """One worker's model, optimizer and data."""

    def __init__(
        self, config: TrainConfig, corpus: Corpus, run: RunDirectory, group: ProcessGroup
    ) -> None:
        """Builds everything at step 0.

        Args:
            config: with model.vocab_size as the tokenizer has it.
            corpus: the same on every worker.
            run: the run's directory.
            group: the workers; torch's process group is initialised if there are several.
        """
        self.config, self.corpus, self.run, self.group = config, corpus, run, group
        self.step = 0
        self._lowest = math.inf  # bits per byte of what was saved
        self._due: Callable[[], None] | None = None  # a checkpoint that is not saved yet
        self.decoder = self._start().to(group.device)
        self.decoder.gradient_checkpointing = config.gradient_checkpointing
        if config.trained == "mhc":
            freeze_all_but_mhc(self.decoder)
        self.optimizers = Optimizers(self.decoder, config.optimizer)
        self.batches = make_batches(config, corpus)
        self.group_gates = GroupGates(corpus.groups, config.model) if corpus.groups else None
        kind = AnswerValidation if isinstance(corpus, AnswerCorpus) else Validation
        self.validation = kind(corpus, group, config.context, self.group_gates)
        own = config.batch_sequences // group.size
        self.ahead = ReadAhead(
            self.batches,
            own=range(group.rank * own, (group.rank + 1) * own),
            device_batch=config.device_batch,
            pinned=group.device.type == "cuda",
        )
        self.objective = Objective(self.decoder, config.loss_chunk)
        if config.compile:
            self.objective.compile()
        self.model: torch.nn.Module = self.objective
        if group.size > 1:
            self.model = DistributedDataParallel(
                self.objective,
                device_ids=[group.device] if group.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def _start(self) -> Decoder:
        """The model at step 0, in float32."""
        if self.config.init_from is None:
            return Decoder(self.config.model, seed=self.config.seed)
        decoder = load_checkpoint(self.config.init_from, dtype=torch.float32).model.train()
        decoder.config = self.config.model  # which may have further behaviours
        return decoder

    def resume(self) -> None:
        """Goes to the newest whole checkpoint, if the run has one, and removes what lies beyond."""
        found = find_resume(self.run) if self.group.is_first else None
        step = self.group.from_first(found.step if found else 0)
        if step:
            if found is None:
                with self.run.open_step(step) as directory:
                    found = load_step(directory)
            self.decoder.load_state_dict(found.checkpoint.model.state_dict())
            self.optimizers.load_state_tensors(found.optimizer)
            self.step = step
        if self.group.is_first:
            for later in [later for later in self.run.steps() if later > step]:
                self.run.delete_step(later)

    def fit(self, persist: Persist) -> None:
        """Trains from the current step to the last.

        A checkpoint is saved once the next loss and its gradient, which these weights give, are
        finite; the last one once its held-out loss is. So none holds what has diverged.

        Raises:
            MHCError: if the loss, the gradient's norm or the held-out loss is not a finite number.
        """
        config = self.config
        log, best = None, None
        if self.group.is_first:
            trackers = make_trackers(config, self.run.location)
            log, best = MetricsLog(self.run, self.step, trackers), Best(self.run)
        self._lowest = self.group.total(0.0 if best is None else best.bits_per_byte)
        progress = Progress(
            self.step + 1,
            config.steps,
            config.total_batch_tokens,
            self._tokens_per_second_at_peak(),
        )
        try:
            with Heartbeat("the first step") if self.group.is_first else nullcontext() as heartbeat:
                while self.step < config.steps:
                    if heartbeat is not None:
                        heartbeat.now(f"step {self.step + 1}/{config.steps}")
                    self._fit_step(progress, persist, log, best)
        finally:
            self.ahead.close()
            if log is not None:
                log.close()

    def _fit_step(
        self, progress: Progress, persist: Persist, log: MetricsLog | None, best: Best | None
    ) -> None:
        config = self.config
        started = time.perf_counter()
        row = self.train_step()
        row |= progress.timing(self.step, time.perf_counter() - started)
        row["peak_memory_gib"] = round(peak_memory(self.group.device) / 2**30, 3)
        last = self.step == config.steps
        evaluated = last or self.step % config.eval_every == 0
        if evaluated:
            row |= self.evaluate()
            self._check_finite("held-out loss", row["val_loss"], self.step)
        if log is not None:
            self._report(row, evaluated, log, progress)
        bits = row.get("val_bpb", math.inf)
        improved = config.keep_best and bits < self._lowest
        if last or self.step % config.checkpoint_every == 0 or improved:
            self._due = partial(self._save, row, persist, best, log)
            self._lowest = min(self._lowest, bits)
        if last:
            self._save_what_is_due()

    def _report(
        self, row: dict[str, Any], evaluated: bool, log: MetricsLog, progress: Progress
    ) -> None:
        """Writes a step's row, with samples after a validation, and its lines; for rank 0."""
        config = self.config
        if evaluated and config.samples.prompts:
            row["samples"] = write_samples(self.decoder, self.corpus.tokenizer, config.samples)
        log.write(row)
        if self.step == config.steps or self.step % config.log_every == 0 or progress.is_due():
            print(progress.step_line(row), flush=True)
        if evaluated:
            print(progress.validation_line(row), flush=True)
            for sample in row.get("samples", []):
                print(progress.sample_line(row, sample), flush=True)

    def _tokens_per_second_at_peak(self) -> float | None:
        """What all workers' devices would do if they did nothing but the model's FLOPs."""
        config = self.config
        peak = config.peak_tflops or device_peak_tflops(self.group.device, config.precision)
        if peak is None:
            return None
        return peak * 1e12 * self.group.size / self.decoder.estimate_flops(config.context)

    def train_step(self) -> dict[str, Any]:
        """One optimizer step on this worker's part of the batch; gives the row of metrics."""
        config = self.config
        step = self.step + 1
        own = config.batch_sequences // self.group.size
        first = self.group.rank * own
        noise = self._gate_noise(step)
        starts = range(first, first + own, config.device_batch)
        weight = self.batches.weight(step) if isinstance(self.batches, AnswerBatches) else 1.0
        loss = 0.0
        for start in starts:
            stop = start + config.device_batch
            inputs, targets = self.ahead.sequences(step, start, stop)
            part = None if noise is None else noise.part(start, stop)
            with ExitStack() as stack:
                if stop < first + own:  # only the last pass exchanges gradients
                    stack.enter_context(self._no_sync())
                with self._autocast():
                    pass_loss = self.model(*self._place(inputs, targets), self._place_noise(part))
                pass_loss = pass_loss * (weight / len(starts))
                pass_loss.backward()
            loss += pass_loss.detach()
        loss = self.group.mean(float(loss))
        self._check_finite("loss", loss, step)
        norm = self.optimizers.clip()
        self._check_finite("the norm of the gradient", norm, step)
        self._save_what_is_due()
        multiplier = config.lr_multiplier(step)
        self.optimizers.update(multiplier)
        self.step = step
        return {
            "step": step,
            "loss": loss,
            "lr_multiplier": round(multiplier, 6),
            "grad_norm": norm,
        }

    def evaluate(self) -> dict[str, float | list[float]]:
        """Held-out metrics; every worker calls it."""
        with self._autocast():
            return self.validation.evaluate(self.decoder)

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        # Every worker is here; what they say must not depend on who looks first.
        saved = self.run.steps()
        message = f"{what} is {value} at step {step}: the training has diverged. "
        rates = (
            "lower learning rates (such as --optimizer.lr) or a smaller --optimizer.gradient-clip"
        )
        if not saved:
            raise MHCError(f"{message}No checkpoint was saved; give another --name, and {rates}")
        raise MHCError(
            f"{message}The newest checkpoint is of before: to go on from it, give another --name, "
            f"--init-from {self.run.location}/{step_name(saved[-1])} --sequence-length "
            f"{self.config.context}, and {rates}"
        )

    def _save_what_is_due(self) -> None:
        if self._due is not None:
            self._due()
            self._due = None

    def _save(
        self, row: dict[str, Any], persist: Persist, best: Best | None, log: MetricsLog | None
    ) -> None:
        if log is not None:
            log.publish()  # first: a stored step without its row could not be the best
        if not self.group.is_first:
            persist(self.step, row, None)
            return
        directory = scratch_directory("checkpoint-")
        try:
            tensors = self.optimizers.state_tensors()
            metadata = {"run": self.config.name, "metrics": row, "corpus": self.corpus.sha256}
            save_step(directory, self.step, self.decoder, self.corpus.tokenizer, tensors, metadata)
            persist(self.step, row, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        if best is not None and self.config.keep_best and "val_bpb" in row:
            best.take(self.step, row["val_bpb"])
        for step in self.run.steps()[: -self.config.keep_last]:
            if best is None or step != best.step:
                self.run.delete_step(step)

    def _gate_noise(self, step: int) -> GateNoise | None:
        """Gates of all sequences of the step; each worker takes its rows."""
        config = self.config
        noise = None
        if config.model.n_gates and config.gate_noise_share > 0.0:
            noise = draw_gate_noise(
                config.seed,
                step,
                config.batch_sequences,
                config.model.n_gates,
                config.gate_noise_share,
                noise_width(step, config.steps, config.gate_noise_ramp),
            )
        if self.group_gates is None:
            return noise
        groups = self.batches.groups(step, 0, config.batch_sequences)
        gates = self.group_gates.draw(config.seed, step, groups)
        return self.group_gates.over(noise, gates, groups)

    def _no_sync(self) -> AbstractContextManager[None]:
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(
            self.group.device.type,
            dtype=torch.bfloat16,
            enabled=self.config.precision == "bfloat16",
        )

    def _place(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.to(self.group.device, non_blocking=True) for tensor in tensors)

    def _place_noise(self, noise: GateNoise | None) -> GateNoise | None:
        return None if noise is None else GateNoise(*self._place(*noise))
