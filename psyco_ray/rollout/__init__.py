"""The actors that serve models: vLLM rollout engines and scorers.

Holds the vLLM engine and its actor, the receiving end of a weight update, and the scorer actor that computes rewards
and reference log-probabilities. Nothing here trains, decides what is sampled, or knows an iteration.
"""
