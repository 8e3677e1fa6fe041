"""What a comparison costs, and whether it sees completions that differ."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mhc_model.conversion import convert, validate_equivalence

# Most of it is its vocabulary, so that it is large and quick.
LARGE = LlamaConfig(
    vocab_size=80_000,
    hidden_size=512,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=32_768,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
)
MEASURED = """
import sys
from mhc_model.conversion import validate_equivalence
import mhc_model.huggingface, transformers.models.llama.modeling_llama

def most():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))

before = most()
result = validate_equivalence(sys.argv[1], sys.argv[2], max_new_tokens=2)
assert result.passed, result
print(most() - before)
"""


def test_it_takes_no_more_than_the_models(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(LARGE)
    size = 4 * model.num_parameters()
    model.save_pretrained(tmp_path / "original")
    del model
    convert(tmp_path / "original", tmp_path / "mhc")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "original"), str(tmp_path / "mhc")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 1024 * int(done.stdout) < 2 * size + 2**27


def test_completions_are_compared_token_by_token(
    theirs: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = theirs("llama")
    model.save_pretrained(tmp_path / "original")
    convert(tmp_path / "original", tmp_path / "mhc")
    rows = torch.randint(97, (4, 9), generator=torch.Generator().manual_seed(0)).tolist()
    result = validate_equivalence(tmp_path / "original", tmp_path / "mhc", prompts=rows)
    assert (result.generated, result.same, result.passed) == (4, 4, True)
    with torch.no_grad():  # the token that begins the third completion loses
        first = model(torch.tensor(rows[2:3])).logits[0, -1].argmax()
        model.lm_head.weight[first] *= -1.0
    model.save_pretrained(tmp_path / "other")
    result = validate_equivalence(tmp_path / "other", tmp_path / "mhc", prompts=rows)
    assert result.same < 4
    assert not result.passed
