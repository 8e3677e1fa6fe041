"""Action spaces of PPO and other ways to choose gates, beside each other on held-out problems."""
