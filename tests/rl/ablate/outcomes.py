"""Which problems each arm of a given ablation solved."""

from __future__ import annotations

OUTCOMES = {
    ("learned", None): [1, 1, 0, 0, 0, 0, 0, 0],
    ("g=0", None): [0, 0, 1, 0, 0, 0, 0, 0],
    ("ppo:global", 0): [1, 1, 1, 1, 1, 1, 0, 0],
    ("ppo:global", 1): [1, 1, 1, 1, 1, 0, 0, 0],
    ("best_constant", 0): [0, 0, 0, 0, 0, 0, 0, 1],
    ("best_constant", 1): [1, 1, 1, 1, 0, 0, 0, 0],
    ("random", 0): [0, 0, 0, 1, 0, 0, 0, 0],
    ("random", 1): [0, 0, 0, 1, 1, 0, 0, 0],
}

# Of each answer, the same for all seeds; the odd problems are those of level 2.
TOKENS = {
    "learned": [10] * 8,
    "g=0": [4] * 8,
    "ppo:global": [4, 20] * 4,
    "best_constant": [20] * 8,
    "random": [10] * 8,
}


def held_out_rows(right: list[int], tokens: list[int]) -> list[dict]:
    """As samples.jsonl has them; answers of 4 tokens are direct, others worked."""
    return [
        {
            "reward": -1.0,
            "right": float(own),
            "gates": [0.25] * 4,
            "tokens": count,
            "completion": "#### 7" if count == 4 else "It is 7.\n#### 7",
        }
        for own, count in zip(right, tokens, strict=True)
    ]
