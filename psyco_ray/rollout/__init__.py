"""The actors that serve models: vLLM rollout engines and scorers.

`RolloutActor` holds a vLLM `Engine`, whose workers receive weight updates through `WeightReceiver`. `ScorerActor`
computes rewards and reference log-probabilities. Nothing here trains, decides what is sampled, or knows an iteration.
"""
