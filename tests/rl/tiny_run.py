"""The command of a tiny run."""

from __future__ import annotations

from pathlib import Path


def arguments_for(checkpoint: Path, storage: Path, ray_directory: str, engine: str) -> list[str]:
    return [
        *("--pool.engine", engine),
        *("--config", "tests/data/rl_tiny.yaml", "--name", "tiny", "--storage", str(storage)),
        *("--checkpoint", str(checkpoint), "--envs", "8", "--rollouts", "16"),
        *("--ppo.minibatch", "8", "--max-tokens", "40", "--sweep-problems", "8"),
        *("--problems", "20", "--checkpoint-every", "1", "--pool.replicas", "1"),
        # The demo's model has behaviours and its tokens cost something; this one's are free.
        *("--data", "builtin:1", "--action-space", "per_sublayer", "--token-cost", "0"),
        *("--sweep", "0.0", "0.5", "1.0"),
        # No KL is this small, so its weight changes at once: it is state that resuming must keep.
        *("--ppo.kl-target", "1e-6", "--ray.temp-dir", ray_directory),
        # Asynchronous: a saved state then has rollouts under way, which resuming must make again.
        *("--asynchronous", "--observation", "mean_hidden_state", "--observation-layer", "1"),
    ]
