"""Runs the steps of a study in lanes; what is whole is passed over, what is half done goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from examples.study.plan import Step
from mhc_model.errors import ConfigError, MHCError
from mhc_model.files import locked_directory, replace_json, replace_text

ROOT = Path(__file__).resolve().parents[2]
STEPS = "steps"
SHOWN_LINES = 15  # of what a failed command said
STOP_S = 30.0  # that a command has to end before it is killed
USER_ERROR = 2  # exit status of our commands for what the same start would meet again
ATTEMPTS = 3  # of a command that fails otherwise, as where Ray does not start in time


class StepFailed(MHCError):
    """A command of a study ended with an error."""


class Runner:
    """Runs steps of one study.

    Attributes:
        directory: absolute, of the study.
        lanes: commands at once.
    """

    def __init__(self, directory: Path, lanes: int) -> None:
        self.directory, self.lanes = directory, lanes
        self._started = time.monotonic()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._taken: dict[str, list[float]] = {}  # what steps of this name took, whatever the seed

    def is_whole(self, step: Step) -> bool:
        """Whether an earlier start finished it, and what it made is there."""
        done, result = self._file(step, ".json"), self.directory / step.result
        return done.exists() and result.exists()

    def run(
        self, steps: Sequence[Step], known: Mapping[str, float], lanes: int | None = None
    ) -> None:
        """Runs what is not whole, each after what it needs, begun in the order given.

        Args:
            steps: whose needs are among them, or whole.
            known: step -> seconds that it should take, where better known than by its own guess.
            lanes: other than the study's.

        Raises:
            StepFailed: with the last lines of the first command that failed, three times or with
                an error that the user can mend; those beside it are waited for, and no further
                one is begun.
        """
        lanes = self.lanes if lanes is None else lanes
        waiting = [step for step in steps if not self.is_whole(step)]
        for step in steps:
            if (seconds := self.seconds(step)) is not None:
                self._taken.setdefault(step.kind, []).append(seconds)
        done = {step.name for step in steps} - {step.name for step in waiting}
        if done:
            print(f"{len(done)} of {len(steps)} steps are whole already", flush=True)
        running: dict[Future[float], Step] = {}
        failures: list[StepFailed] = []
        with _stopping_children(self), ThreadPoolExecutor(lanes) as pool:
            try:
                while waiting or running:
                    free = [] if failures else [s for s in waiting if done.issuperset(s.needs)]
                    for step in free[: lanes - len(running)]:
                        waiting.remove(step)
                        running[pool.submit(self._run_step, step)] = step
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        step = running.pop(future)
                        error = future.exception()
                        if isinstance(error, StepFailed):
                            failures.append(error)
                            continue
                        seconds = future.result()
                        done.add(step.name)
                        self._taken.setdefault(step.kind, []).append(seconds)
                        left = self.left([*waiting, *running.values()], known, lanes)
                        print(
                            f"[{len(done)}/{len(steps)}] {step.name}: {seconds:.0f} s | elapsed "
                            f"{_clock(time.monotonic() - self._started)} | about {_clock(left)} "
                            f"left",
                            flush=True,
                        )
            except BaseException:
                self.stop()
                raise
        if failures:
            raise failures[0]
        if waiting:
            raise ConfigError(
                f"steps {', '.join(s.name for s in waiting)} wait for what is not there"
            )

    def seconds(self, step: Step) -> float | None:
        """How long a step took; None where it is not done."""
        path = self._file(step, ".json")
        if not path.exists():
            return None
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])

    def stop(self) -> None:
        """Ends the commands under way."""
        with self._lock:
            self._stopped = True
            processes = list(self._processes)
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def left(self, steps: Sequence[Step], known: Mapping[str, float], lanes: int) -> float:
        """Seconds: by the same steps of other seeds, else what is known, else guesses."""
        total = 0.0
        for step in steps:
            own = self._taken.get(step.kind)
            total += sum(own) / len(own) if own else known.get(step.name, step.guess_s)
        return total / lanes

    def _run_step(self, step: Step) -> float:
        """Runs a command to its end; gives its seconds."""
        config, log = self._file(step, ".yaml"), self._file(step, ".log")
        config.parent.mkdir(parents=True, exist_ok=True)
        replace_text(config, yaml.safe_dump(dict(step.values), sort_keys=False))
        self._wait_for_others(step)
        arguments = ["-m", step.module, "--config", str(config)]
        started = time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            status = self._start(step, arguments, log)
            if status in (0, USER_ERROR) or self._stopped or attempt == ATTEMPTS:
                break
            print(f"{step.name}: ended with {status}; trying again ({log})", flush=True)
        seconds = time.monotonic() - started
        if status != 0 or not (self.directory / step.result).exists():
            raise StepFailed(self._failure(step, status, log))
        facts: dict[str, Any] = {"seconds": round(seconds, 1), "command": arguments}
        replace_json(self._file(step, ".json"), facts)
        return seconds

    def _start(self, step: Step, arguments: list[str], log: Path) -> int:
        """One attempt; gives its exit status."""
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(['python', *arguments])}\n".encode())
            output.flush()
            with self._lock:
                if self._stopped:
                    raise StepFailed(f"{step.name} was not begun: the study was stopped")
                process = subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=ROOT,
                    env=environment(),
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                self._processes.add(process)
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
        return status

    def _failure(self, step: Step, status: int, log: Path) -> str:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]
        reason = f"ended with {status}" if status else f"did not write {step.result}"
        said = "\n".join(lines)
        return (
            f"step {step.name} {reason}; the same command goes on there. All that it said is in "
            f"{log}, at the end:\n{said}"
        )

    def _wait_for_others(self, step: Step) -> None:
        """A start that was killed may have left its command at work: that one ends first."""
        place = self.directory / step.name
        try:
            with locked_directory(place, "taken"):
                return
        except ConfigError:
            print(f"{step.name}: an earlier start's command is still at it; waiting", flush=True)
        with locked_directory(place, None):
            return

    def _file(self, step: Step, suffix: str) -> Path:
        return self.directory / STEPS / f"{step.name}{suffix}"


def environment() -> dict[str, str]:
    """Of the commands: one thread a process, since the lanes share the cores."""
    return {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ}


@contextmanager
def _stopping_children(runner: Runner) -> Iterator[None]:
    """SIGTERM stops the commands too, as Ctrl-C does; only the main thread can say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
