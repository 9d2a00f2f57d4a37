"""Elastic pools of Ray actors, and where actors fit in a cluster.

A pool dispatches work items, health-checks its actors, replaces failed ones, requeues their items and delivers each
result exactly once. Placement turns a role's resources into Ray options and checks that the cluster can hold a job.
Nothing here knows what an actor computes.
"""
