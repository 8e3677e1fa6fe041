"""A tokenizer, and configurations with parts of a few kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpora import TEXTS

from mhc_model.settings import validate_settings
from mhc_model.tokenizer import Tokenizer
from train.prepare import PrepareConfig


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(TEXTS, 320).save(directory)
    return str(directory)


@pytest.fixture
def make(tmp_path: Path, tokenizer: str) -> Any:
    """`make(*sources, **fields)`: a configuration with parts of a few kilobytes."""

    def build(*sources: Path, **fields: object) -> PrepareConfig:
        values = {
            "source": [str(source) for source in sources],
            "out": str(tmp_path / "out"),
            "tokenizer": tokenizer,
            "validation_share": 0.2,
            "part_bytes": 8000,
        }
        return validate_settings(PrepareConfig, values | fields, "test")

    return build
