"""Reinforcement learning over gates: replica pool, environment, PPO."""
