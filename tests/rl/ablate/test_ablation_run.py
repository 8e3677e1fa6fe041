"""An ablation that goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mhc_model import ConfigError
from rl.ablate.run import _check_claim, _claim


def test_an_ablation_goes_on_with_the_same_problems_only(findings):
    study = findings.study
    _claim(study)
    _check_claim(study)
    named = study.directory / "checkpoint.json"
    changed = replace(study, training=study.training[1:])
    with pytest.raises(ConfigError, match=r"given was started on problems [0-9a-f]+, not on"):
        _check_claim(changed)
    named.write_text(json.dumps({"content_hash": study.checkpoint.content_hash}))
    _check_claim(changed)  # an earlier version did not note them
