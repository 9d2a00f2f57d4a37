"""The command ``plan``: resources of a job, the time of an iteration, and the split of GPUs over the roles."""
