"""Directories that one process at a time writes to."""

import subprocess
import sys
import threading

import pytest

from mhc_model.errors import ConfigError
from mhc_model.files import locked_directory

HOLDER = """
import sys, time
from pathlib import Path
from mhc_model.files import locked_directory
with locked_directory(Path(sys.argv[1]), "never"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_directory_has_one_owner_and_no_file_of_it(tmp_path):
    directory = tmp_path / "new" / "run"
    with (
        locked_directory(directory, "taken: the first"),
        pytest.raises(ConfigError, match=r"^taken: the second$"),
        locked_directory(directory, "taken: the second"),
    ):
        raise AssertionError("two are in it")
    with locked_directory(directory, "taken"):
        assert not list(directory.iterdir())


def test_the_lock_ends_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match="taken"), locked_directory(tmp_path, "taken"):
                pass
        finally:
            process.kill()
    with locked_directory(tmp_path, "taken"):
        pass


def test_who_gives_no_error_waits(tmp_path):
    entered = threading.Event()

    def wait() -> None:
        with locked_directory(tmp_path, None):
            entered.set()

    second = threading.Thread(target=wait)
    with locked_directory(tmp_path, None):
        second.start()
        assert not entered.wait(0.2)
    assert entered.wait(30)
    second.join()
