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
