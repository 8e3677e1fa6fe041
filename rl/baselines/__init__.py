"""Ways to choose gates that PPO is held against, each within the same number of rollouts."""
