"""Kinds of tokens, and how much each is mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evals.report.token_kinds import kind_of, mixing_by_kind
from mhc_model.checkpoint import load_checkpoint
from mhc_model.routing import watch_routing


def test_mixing_by_kind_is_the_mean_of_routing(checkpoints):
    loaded = load_checkpoint(checkpoints[0] / "mhc")
    texts = ["Tom has 7 apples", "12 + 5"]
    table, kinds, counts = mixing_by_kind(loaded.model, loaded.tokenizer, texts)
    with watch_routing(loaded.model) as routing, torch.no_grad():
        for text in texts:
            loaded.model(torch.tensor([loaded.tokenizer.encode(text, bos=True)]))
    expected = [float(record.identity_distance) for record in routing.sublayers()]
    weighted = np.average(table, axis=0, weights=counts)
    assert weighted.tolist() == pytest.approx(expected, abs=1e-5)
    assert kinds[:2] == ["separator", "number"]
    assert counts[0] == 2


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"", "separator"),
        (b"12", "number"),
        (b" 7", "number"),
        (b" has", "word"),
        (b"ing", "part of a word"),
        ("é".encode(), "part of a word"),
        (b" +", "sign"),
        (b"<<", "sign"),
        (b"\n", "space or line break"),
    ],
)
def test_kinds(text, kind):
    assert kind_of(text) == kind
