"""The command told to stop, as a platform or a person does it: at the start and in a save."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from processes import losses, started, wait_for

from mhc_model.settings import dump_settings

ENDS_WITHIN_S = 30  # on a busy machine; less than a second on an idle one
GOES_ON = "nothing is saved now; the same command goes on from the newest checkpoint"


def living(session: int) -> list[str]:
    """Command lines of the processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_stopped_run_ends_soon_leaves_nothing_and_goes_on(tmp_path, make_config):
    config = make_config(
        steps=60,
        checkpoint_every=1,  # so a stop is nearly always in a save
        eval_every=60,
        device_batch=8,
        workers={"num_workers": 2},
        ray={"address": "local", "num_cpus": 2},
    )
    run = Path(config.storage, config.name)
    dump_settings(config, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "train", "--config", str(tmp_path / "config.yaml")]

    def stop(number: signal.Signals, condition, what: str) -> str:
        output = tmp_path / f"{what}.txt"
        with started(command, output) as process:
            wait_for(lambda: condition(output.read_text()), process, what)
            process.send_signal(number)
            assert process.wait(ENDS_WITHIN_S) == 128 + number, output.read_text()
            time.sleep(0.5)
            assert living(process.pid) == []
        text = output.read_text()
        assert "Traceback" not in text
        assert "*** SIG" not in text
        (said,) = {line for line in text.splitlines() if line.startswith(number.name)}
        return said

    said = stop(signal.SIGTERM, lambda text: "starting Ray" in text, "start")
    assert said == "SIGTERM: nothing was written yet; start the same command again"
    assert not run.exists()
    reached = 0
    for number, more in ((signal.SIGINT, 3), (signal.SIGTERM, 2)):
        wanted = reached + more
        said = stop(number, lambda _, to=wanted: max(losses(run), default=0) >= to, f"{wanted}")
        assert GOES_ON in said
        assert str(run) in said
        reached = max(losses(run))
    last = tmp_path / "last.txt"
    with started([*command, "--steps", str(reached + 2), "--eval-every", "60"], last) as process:
        assert process.wait(300) == 0, last.read_text()
    assert "resuming after step" in last.read_text()
    assert set(losses(run)) == set(range(1, reached + 3))
