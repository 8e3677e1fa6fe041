"""Peak memory of generation: measured in a process of its own, which did nothing else before.

    python -m evals.measure.memory --checkpoint runs/mhc --batch 32

On CUDA it is what torch allocated at most; on the CPU the resident memory of the process at most,
beside what it was before the checkpoint was loaded.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from mhc_model.errors import EngineError
from mhc_model.settings import Settings, parse_command_line, reports_errors

STATUS = Path("/proc/self/status")


class MemorySettings(Settings):
    """Configuration of `python -m evals.measure.memory`."""

    checkpoint: str = Field(description="checkpoint or run directory")
    batch: int = Field(32, ge=1, description="requests at once")
    prompt_tokens: int = Field(64, ge=1, description="tokens of each prompt")
    new_tokens: int = Field(32, ge=1, description="tokens of each answer")
    device: str = Field("auto", description="cpu, cuda, cuda:0, ...; auto is CUDA if there is one")


def measure_memory(settings: MemorySettings) -> dict[str, Any]:
    """Peak memory, measured in a new process.

    Raises:
        EngineError: if that process fails; its own message is in the error.
    """
    line = [sys.executable, "-m", "evals.measure.memory"]
    for name, value in settings.model_dump().items():
        line += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"measuring the memory failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints one line of JSON."""
    settings = parse_command_line(
        MemorySettings, "evals.measure.memory", "Measures the peak memory of generation.", argv
    )
    print(json.dumps(_measure(settings)))
    return 0


def _measure(settings: MemorySettings) -> dict[str, Any]:
    import torch

    from mhc_model.engine import Engine, Request, SamplingParams

    before = peak_rss()  # what is imported is there without a checkpoint, too
    length = settings.prompt_tokens + settings.new_tokens
    engine = Engine.from_checkpoint(
        settings.checkpoint, settings.batch, length, device=settings.device
    )
    vocabulary = engine.model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch, settings.prompt_tokens)
    prompts = torch.randint(vocabulary, shape, generator=generator).tolist()
    sampling = SamplingParams(max_tokens=settings.new_tokens, ignore_eos=True)
    engine.generate([Request(prompt, None, sampling) for prompt in prompts])
    figures = {
        "batch": settings.batch,
        "prompt_tokens": settings.prompt_tokens,
        "new_tokens": settings.new_tokens,
        "weights_bytes": sum(p.numel() * p.element_size() for p in engine.model.parameters()),
        "peak_rss_bytes": peak_rss(),
        "rss_before_loading_bytes": before,
    }
    if engine.device.type == "cuda":
        figures["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(engine.device)
    return figures


def peak_rss() -> int:
    """Bytes of memory that this process has had resident at most."""
    if STATUS.exists():
        # Not getrusage: its peak is handed on from the process that started this one.
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    raise SystemExit(main())
