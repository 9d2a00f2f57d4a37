"""Training a policy or a reward model: what the driver's verbs do.

Holds the orchestrator, the sampling pipeline, weight sync, the state of a run, guards, control from outside, and the
reward trainer. Actors and learners come from rollout and learner; decisions about them are made here. The loop itself
is in driver.py.
"""
