"""Training of the model that obeys its gates.

Axes: b problem, t token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.problems import Problem
from evals.tasks import document, prompt_tokens
from mhc_model.config import MHCConfig, ModelConfig
from mhc_model.decoder import Decoder
from mhc_model.errors import ConfigError
from mhc_model.tokenizer import Tokenizer
from rl.steerable.config import ModelSettings
from rl.steerable.task import digit_of

IGNORED = -100  # cross_entropy's own mark of positions that do not count
WARMUP = 20  # steps


class TokenizedProblems(NamedTuple):
    """All problems as tokens; the digit of the gates is put in when a batch is drawn."""

    tokens: Tensor  # (b, t) int64, padded at the end
    prompts: Tensor  # (b,) tokens of the prompt
    ends: Tensor  # (b,) position of the digit that the gates spell, followed by the end
    digits: Tensor  # (10,) token of each digit


def train_model(
    settings: ModelSettings, problems: Sequence[Problem], seed: int
) -> tuple[Decoder, Tokenizer]:
    """A model whose last digit is what its key gates spell.

    Every sequence has gates of its own: those of the keys on either side of 1/2 with a margin, all
    others anywhere in [0, 1]. The learned gates are never used, and stay where they start.

    Args:
        settings: model and training.
        problems: to train on, without the digit.
        seed: of weights, problems and gates.
    """
    tokenizer = Tokenizer.train([document(problem) for problem in problems], settings.vocab_size)
    model = Decoder(model_config(settings, tokenizer.vocab_size), seed=seed)
    model.gate_logits.requires_grad_(False)
    batches = _batches(problems, tokenizer)
    streams = [p for name, p in model.named_parameters() if _is_mhc(name) and p.requires_grad]
    others = [p for name, p in model.named_parameters() if not _is_mhc(name)]
    optimizer = torch.optim.AdamW(
        [{"params": others, "lr": settings.lr}, {"params": streams, "lr": settings.mhc_lr}],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _multiplier(step, settings.steps)
    )
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    for step in range(1, settings.steps + 1):
        tokens, targets, gates = _draw(batches, settings, generator)
        logits = model(tokens, gates)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        if not bool(loss.isfinite()):
            raise ConfigError(
                f"loss is {float(loss)} at step {step} of the model: lower model.lr or "
                f"model.mhc_lr, and give another name"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == settings.steps:
            seconds = time.perf_counter() - started
            print(f"step {step}/{settings.steps} | loss {loss:.4f} | {seconds:.0f} s", flush=True)
    return model.requires_grad_(True).eval(), tokenizer


def model_config(settings: ModelSettings, vocab_size: int) -> ModelConfig:
    """Streams that start apart and mix well, so that each gate shows from the first step on."""
    return ModelConfig(
        vocab_size=vocab_size,
        n_layers=settings.n_layers,
        n_heads=4,
        d_model=settings.d_model,
        max_seq_len=48,
        mhc=MHCConfig(
            stream_embedding_std=1.0,
            res_diagonal=1.0,
            scale_init=0.01,
            gate_init=settings.learned_gate,
        ),
    )


def _is_mhc(name: str) -> bool:
    return "_connection." in name or name in ("stream_embedding", "gate_logits")


def _multiplier(step: int, steps: int) -> float:
    """Of the learning rates: up over the warmup, down to zero over the last 40 %."""
    return min(1.0, (step + 1) / WARMUP, max(0.02, (steps - step) / (0.4 * steps)))


def _batches(problems: Sequence[Problem], tokenizer: Tokenizer) -> TokenizedProblems:
    digits = [tokenizer.encode(str(digit))[-1] for digit in range(10)]
    rows, prompts = [], []
    for problem in problems:
        prompt = prompt_tokens(tokenizer, problem)
        answer = tokenizer.encode(f" {problem.answer}0")
        rows.append(torch.tensor([*prompt, *answer, tokenizer.eos_id]))
        prompts.append(len(prompt))
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return TokenizedProblems(tokens, torch.tensor(prompts), lengths - 2, torch.tensor(digits))


def _draw(
    batches: TokenizedProblems, settings: ModelSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (b, t), targets (b, t) of the answers only, gates (b, 2L)."""
    size, keys = settings.batch, list(settings.keys)
    rows = torch.randint(len(batches.tokens), (size,), generator=generator)
    bits = torch.randint(2, (size, len(keys)), generator=generator)
    gates = torch.rand(size, 2 * settings.n_layers, generator=generator)
    room = 0.5 - settings.margin
    gates[:, keys] = room * gates[:, keys] + (1.0 - room) * bits
    spelled = torch.tensor([digit_of(row) for row in bits.tolist()])
    tokens = batches.tokens[rows].clone()
    tokens[torch.arange(size), batches.ends[rows]] = batches.digits[spelled]
    place = torch.arange(tokens.shape[1] - 1)[None]
    answer = (place >= batches.prompts[rows, None] - 1) & (place <= batches.ends[rows, None])
    return tokens[:, :-1], tokens[:, 1:].where(answer, IGNORED), gates
