"""Training of policies and reward models: the stages behind the loop in `psyco_ray.driver`.

- `orchestrator`: sequences actors and stages; `actors` starts them, `colocation` alternates GPUs.
- `pipeline`, `quarantine`: streaming of sampling and scoring.
- `pair_stage`, `pairs`: preference pairs. `policy_trainer`, `reward_trainer`, `step_log`: optimizer steps.
- `weight_sync`: weights from the learner to the rollouts.
- `heldout`, `guards`, `run_state`: evaluation, alarms, roll-back and checkpoint retention.
- `control`, `summary`: status, scaling, and the summary of a run.
"""
