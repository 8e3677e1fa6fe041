"""A model of a few seconds' training whose gates decide in which style it answers."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from evals.problems import Problem, restyle
from evals.tasks import document, prompt_tokens
from mhc_model.checkpoint import save_checkpoint
from mhc_model.config import MHCConfig, ModelConfig
from mhc_model.decoder import Decoder
from mhc_model.tokenizer import Tokenizer

BEHAVIOURS = {"direct": {"gates": [0.0, 0.3]}, "worked": {"gates": [0.7, 1.0]}}
STEPS, BATCH = 100, 16


def sums() -> list[Problem]:
    return [
        Problem(
            f"{a}-{b}",
            f"What is {a} + {b}?",
            f"{a} and {b} are {a} + {b} = <<{a}+{b}={a + b}>>{a + b} in all.\n#### {a + b}",
        )
        for a in range(2, 10)
        for b in range(2, 10)
    ]


def train(model: Decoder, tokenizer: Tokenizer, problems: list[Problem]) -> None:
    """Each row is answered in one behaviour's style under gates of its range."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.015)
    random = torch.Generator().manual_seed(0)
    behaviours = list(model.config.behaviours.items())
    model.train()
    for _ in range(STEPS):
        inputs = torch.full((BATCH, 64), tokenizer.eos_id)
        targets = torch.full((BATCH, 64), -100)
        gates = torch.zeros(BATCH, model.config.n_gates)
        picked = torch.randint(len(problems), (BATCH,), generator=random).tolist()
        for row, number in enumerate(picked):
            style, behaviour = behaviours[row % 2]
            problem = restyle(problems[number], style)
            head = prompt_tokens(tokenizer, problem)
            tokens = [*head, *tokenizer.encode(f" {problem.answer}"), tokenizer.eos_id]
            inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            targets[row, len(head) - 1 : len(tokens) - 1] = torch.tensor(tokens[len(head) :])
            ((low, high),) = behaviour.ranges
            gates[row] = low + (high - low) * torch.rand((), generator=random)
        width = int((targets >= 0).any(dim=0).nonzero().max()) + 1
        logits = model(inputs[:, :width], gates).flatten(0, 1)
        loss = F.cross_entropy(logits, targets[:, :width].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@pytest.fixture(scope="session")
def steered(tmp_path_factory):
    """`.checkpoint` of that model, `.data`, a file with its problems, and their number `.n`."""
    root = tmp_path_factory.mktemp("steered")
    problems = sums()
    texts = [document(one) for p in problems for one in (p, restyle(p, "direct"))]
    tokenizer = Tokenizer.train(texts, 300)
    streams = MHCConfig(res_diagonal=1.0)
    size = {"n_layers": 2, "n_heads": 4, "d_model": 32, "max_seq_len": 64}
    values = {"vocab_size": tokenizer.vocab_size, "behaviours": BEHAVIOURS}
    model = Decoder(ModelConfig(mhc=streams, **size, **values))
    train(model, tokenizer, problems)
    save_checkpoint(root / "model", model, tokenizer)
    data = root / "sums.jsonl"
    data.write_text("".join(json.dumps(asdict(problem)) + "\n" for problem in problems))
    return SimpleNamespace(checkpoint=root / "model", data=data, n=len(problems))


@pytest.fixture(scope="session")
def control(steered, tmp_path_factory):
    """The directory of a run of the command over that model."""
    from evals.control.__main__ import main

    out = tmp_path_factory.mktemp("control") / "out"
    line = ["--checkpoint", str(steered.checkpoint), "--data", str(steered.data)]
    line += ["--out", str(out), "--max-tokens", "40", "--device", "cpu"]
    assert main(line) == 0
    return out
