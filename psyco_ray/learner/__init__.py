"""The DeepSpeed learner: a group of workers that trains one model.

Holds the worker and its group, recovery by reloading a checkpoint and replaying steps, losses, batching, LoRA, host
offload, the checkpoint format and the sending end of a weight update. Nothing here samples, ranks responses, or decides
which checkpoint is kept.
"""
