"""The harness without the hub, and a checkpoint with room for its prompts."""

from __future__ import annotations

import os

import pytest

from mhc_model.checkpoint import save_checkpoint

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the hub


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, make_model, tokenizer):
    directory = tmp_path_factory.mktemp("harness") / "mhc"
    behaviours = {"direct": {"gates": [0.0, 0.3], "at": 0.0}, "worked": {"gates": [0.7, 1.0]}}
    save_checkpoint(directory, make_model(context=512, behaviours=behaviours), tokenizer)
    return directory
