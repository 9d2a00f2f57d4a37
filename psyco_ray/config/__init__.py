"""Job files and the typed settings of every job.

Each key has its default, unit and source here; a job file names only what differs. Prompts and the error that a
user's input raises (`InputError`) live here too. Nothing in this package imports Ray, torch or another package of
psyco_ray, and nothing here does work: no actors, no files but the ones that a job names as its settings.
"""
