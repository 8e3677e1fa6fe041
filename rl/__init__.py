"""Reinforcement learning over gates: a frozen model answers, a policy learns to choose its gates.

What comes in: a checkpoint of an mHC model, and problems. What goes out: a policy directory, which
mhc_model.policy loads and serve serves, and every rollout that it was learned from. May import
mhc_model and evals, never train or serve.

Each of these imports only what stands before it:

    config.py     what a run is: `RLConfig`
    directory.py  a run's directory belongs to one configuration and one process
    setup.py      model, problems and observations, checked before anything starts
    pool/         requests -> completions, on replicas of the model
    rollouts.py   problems and gates -> rewards, by way of a pool; the file that keeps them
    env.py        the same as environments: `GateVectorEnv`, `GSM8KGateEnv`
    ppo/          rewards -> a better policy, with RLlib
    tuning/       one run of `python -m rl`
    baselines/    other ways to choose gates, in as many rollouts
    ablate/       all ways beside each other on held-out problems
    steerable/    the proof, where right gates are known

`python -m rl` and its kin read their configuration before they import anything else of these.
"""

__all__ = ["ablate", "baselines", "config", "env", "pool", "steerable"]
