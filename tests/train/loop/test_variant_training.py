"""Training with the members of the family of hyper-connections, named in the configuration."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mhc_model import load_checkpoint
from train.estimate import saved_bytes

VARIANTS = {
    "identity": {"projection": "identity"},
    "accepting": {"projection": "identity", "gates": "accept"},
    "kronecker": {"projection": "kronecker"},
    "free": {"projection": "free"},
    "learned_collapse": {"collapse": "learned"},
    "single_pass": {"single_pass": True, "collapse": "learned"},
    "static": {"dynamic": False},
    "static_identity": {"dynamic": False, "projection": "identity"},
}


def rows_of(config) -> list[dict]:
    path = Path(config.storage, config.name, "metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_halves_equal_the_whole(name, make_config, make_trainer, persist_in):
    model = {"n_layers": 2, "n_heads": 2, "d_model": 16, "max_seq_len": 32}
    model["mhc"] = VARIANTS[name]
    trained = {}
    for run, stops in (("whole", [16]), ("halves", [8, 16])):
        config = make_config(name=run, model=model)
        for stop in stops:
            trainer = make_trainer(config)
            trainer.resume()
            persist = persist_in(trainer.run)

            def until(step, metrics, directory, persist=persist, stop=stop):
                persist(step, metrics, directory)
                if step == stop < 16:
                    raise KeyboardInterrupt

            with suppress(KeyboardInterrupt):
                trainer.fit(until)
        trained[run] = trainer
    rows = rows_of(trained["whole"].config)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    validation = rows[7]
    if name != "free":
        assert validation["composite_gain"] == pytest.approx(1.0, abs=1e-4)
    takes_gates = "identity" not in name
    assert ("val_loss_gate_0" in validation) is takes_gates
    assert ("gates" in validation) is takes_gates
    parts = (dict(trained[run].decoder.named_parameters()) for run in ("whole", "halves"))
    whole, halves = parts
    for parameter, value in whole.items():
        torch.testing.assert_close(value, halves[parameter], rtol=0, atol=1e-6, msg=parameter)
    started = make_trainer(make_config(name="fresh", model=model)).decoder.connections()[0]
    assert not torch.equal(started.base, trained["whole"].decoder.connections()[0].base)
    found = load_checkpoint(Path(config.storage, "whole")).model
    assert torch.equal(found.connections()[0].base, trained["whole"].decoder.connections()[0].base)
    default = make_config(model={**model, "mhc": {}})
    less = saved_bytes(config, config.model) < saved_bytes(default, default.model)
    assert less is ("identity" in name or name in ("accepting", "kronecker", "static"))
