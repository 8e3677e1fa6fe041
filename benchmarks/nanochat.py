"""nanochat's model and optimizer for a comparison, from a copy of its repository that you have.

Nothing of it is here: the directory is given, and its package is imported from there.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

FEATURES = (
    "value embeddings, smear, backout, per-layer scalars, sharper attention",
    "smear, backout, per-layer scalars, sharper attention",
)


def load_nanochat(directory: str, dtype: str) -> ModuleType:
    """Imports nanochat's gpt.py.

    Args:
        directory: of a checkout, or of a git repository without one.
        dtype: what it computes in; it reads that while it is imported.
    """
    root = Path(directory)
    if not (root / "nanochat" / "gpt.py").is_file():
        git = ["git", f"--git-dir={root}", "archive", "HEAD", "nanochat"]
        content = subprocess.run(git, capture_output=True, check=True).stdout
        root = Path(tempfile.mkdtemp(prefix="nanochat-"))
        with tarfile.open(fileobj=BytesIO(content)) as archive:
            archive.extractall(root, filter="data")
    os.environ["NANOCHAT_DTYPE"] = dtype
    sys.path.insert(0, str(root))
    return importlib.import_module("nanochat.gpt")


class NanochatStep:
    """Its model with its optimizer, and one whole step of training on random tokens."""

    def __init__(self, options: argparse.Namespace, gpt: Any, value_embeddings: bool) -> None:
        """Builds it as its training script does.

        Args:
            options: of the benchmark.
            gpt: of `load_nanochat`.
            value_embeddings: false leaves out the tables of value embeddings, the one of its
                additions that costs much.
        """
        self.options, self.device = options, torch.device(options.device)
        has_ve = gpt.has_ve
        gpt.has_ve = has_ve if value_embeddings else lambda *_: False
        try:
            with torch.device("meta"):
                model = gpt.GPT(
                    gpt.GPTConfig(
                        sequence_len=options.tokens,
                        vocab_size=options.vocab,
                        n_layer=options.layers,
                        n_head=options.heads,
                        n_kv_head=options.heads,
                        n_embd=options.width,
                        window_pattern="L",  # full attention in every layer, as ours
                    )
                )
            model.to_empty(device=self.device)
            model.init_weights()
        finally:
            gpt.has_ve = has_ve
        self.flops = model.estimate_flops()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        groups = model.setup_optimizer()
        self.optimizer = groups[0] if isinstance(groups, tuple | list) else groups
        # It always compiles; here it does where ours does.
        self.model = torch.compile(model, dynamic=False) if options.compile else model
        shape = (options.passes, 2, options.batch, options.tokens)
        self.data = torch.randint(options.vocab, shape, device=self.device)
        self.step()

    def loss(self, part: Tensor) -> Tensor:
        loss: Tensor = self.model(part[0], part[1])
        return loss

    def step(self) -> None:
        for part in self.data:
            (self.loss(part) / len(self.data)).backward()
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
