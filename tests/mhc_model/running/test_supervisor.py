"""Commands that are told to stop: real processes, real signals, at every stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# A command: divides itself, then does what the test says.
PROGRAM = """
from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

import os, signal, subprocess, sys, tempfile, time
from pathlib import Path
from mhc_model.running import on_stop, private_directory, scratch_directory, stop_signals

print("pid", os.getpid(), "in", private_directory(), flush=True)
"""
STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


class Command:
    """A program that runs as `python -m program`; `said` is what it has written."""

    def __init__(self, directory: Path, body: str) -> None:
        (directory / "program.py").write_text(PROGRAM + textwrap.dedent(body))
        self.output = directory / "output"
        environment = os.environ | {"PYTHONPATH": f"{directory}:{ROOT}", "TMPDIR": str(directory)}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "program"],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.02)

    def members(self) -> list[int]:
        """Living processes of its session."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(entry.name))
        return found


@pytest.fixture
def start(tmp_path):
    commands: list[Command] = []

    def started(body: str) -> Command:
        directory = tmp_path / str(len(commands))
        directory.mkdir()
        commands.append(Command(directory, body))
        return commands[-1]

    yield started
    for command in commands:
        for process in command.members():
            os.kill(process, signal.SIGKILL)
        command.process.wait()


def left_behind(command: Command) -> list[str]:
    return [path.name for path in command.output.parent.iterdir() if path.name.startswith("mhc-")]


@pytest.mark.parametrize(("number", "status"), STOPS)
def test_a_stop_says_so_and_ends_what_was_started(start: Callable, number, status):
    command = start("""
        scratch_directory("x-")
        # Its own session, its own handlers, and nobody who waits for it: as of Ray's processes.
        stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
        orphaned = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}])"
        subprocess.run([sys.executable, "-c", orphaned])
        subprocess.Popen([sys.executable, "-c", stubborn])
        # As a library does that was imported: handlers of its own.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), lambda *_: os.abort())
        on_stop("the same command goes on")
        print("ready", flush=True)
        time.sleep(600)
    """)
    command.wait_for("ready")
    assert len(command.members()) == 4
    assert left_behind(command)
    command.process.send_signal(number)
    assert command.process.wait(20) == status
    assert command.said.endswith(f"ready\n{number.name}: the same command goes on\n")
    assert command.members() == []
    assert left_behind(command) == []


@pytest.mark.parametrize(("number", "status"), STOPS[:2])
def test_a_command_in_native_code_is_stopped_too(start: Callable, number, status):
    command = start("""
        import ctypes
        print("ready", flush=True)
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock: no Python handler can run
    """)
    command.wait_for("ready")
    command.process.send_signal(number)
    assert command.process.wait(20) == status
    assert f"{number.name}: nothing was written yet" in command.said
    assert command.members() == []


def test_a_stop_while_it_is_still_importing(start: Callable):
    command = start("time.sleep(600)")
    command.wait_for("pid")
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(20) == 130
    assert "Traceback" not in command.said


PATIENT = """
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)
    on_stop("finishing", patience_s=PATIENCE)
    print("ready", flush=True)
    for _ in range(4):
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            print("told", flush=True)
            STEP
"""


def test_a_patient_command_is_told_and_ends_by_itself(start: Callable):
    body = PATIENT.replace("PATIENCE", "60").replace("STEP", "time.sleep(1); print('done'); break")
    command = start(body)
    command.wait_for("ready")
    # Ctrl-C reaches the whole group: the command hears of it once.
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.process.wait(20) == 130
    assert command.said.endswith("SIGINT: finishing\ntold\ndone\n")


def test_a_second_signal_is_passed_on_and_a_third_ends_it(start: Callable):
    command = start(PATIENT.replace("PATIENCE", "60").replace("STEP", "pass"))
    command.wait_for("ready")
    command.process.send_signal(signal.SIGTERM)
    command.wait_for("told")
    command.process.send_signal(signal.SIGINT)
    command.wait_for("told\ntold")
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(20) == 143  # of the first
    assert command.said.endswith("SIGTERM again: ending at once\n")


def test_patience_has_an_end(start: Callable):
    command = start(PATIENT.replace("PATIENCE", "0.5").replace("STEP", "pass"))
    command.wait_for("ready")
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(20) == 143
    assert command.members() == []


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("sys.exit(2)", 2, ""),
        ("sys.exit(0)", 0, ""),
        ("raise ValueError('x')", 1, "ValueError: x"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "ended by SIGKILL: the machine may have run"),
        ("os.abort()", 134, "error: the command was ended by SIGABRT"),
    ],
)
def test_otherwise_the_exit_status_is_the_commands(start: Callable, body, status, said):
    command = start(body)
    assert command.process.wait(60) == status
    assert said in command.said
    assert left_behind(command) == []


def test_a_command_does_not_outlive_its_parent(start: Callable):
    command = start("print('ready', flush=True); time.sleep(600)")
    command.wait_for("ready")
    command.process.kill()
    command.process.wait(20)
    deadline = time.monotonic() + 10
    while command.members() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert command.members() == []


def test_a_signal_that_was_ignored_stays_ignored(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM + "time.sleep(2); print('whole')\n")
    process = subprocess.Popen(
        ["sh", "-c", f"trap '' HUP; exec {sys.executable} -m program"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "pid" in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=30)[0] == "whole\n"
    assert process.returncode == 0


def test_the_directory_is_the_users_alone(start: Callable):
    command = start("""
        mode = private_directory().stat().st_mode & 0o777
        print(oct(mode), scratch_directory("x-").parent == private_directory())
    """)
    assert command.process.wait(60) == 0
    assert "0o700 True" in command.said
