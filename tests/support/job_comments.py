"""Commands in the comments of job files."""

import re
import shlex

from psyco_ray.config import job_file
from psyco_ray.config.training import Job
from support.paths import JOBS, ROOT


def commands(name: str, verb: str) -> list[list[str]]:
    """The job file and overrides of each `psyco-ray VERB` command in the comment of a job file."""
    comment = "\n".join(line[1:] for line in (JOBS / name).read_text().splitlines() if line.startswith("#"))
    lines = re.sub(r"\\\n", " ", comment).splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.strip().startswith(f"psyco-ray {verb} ")]
    return [[path, *(word for word in rest if "=" in word)] for _, _, path, *rest in words]


def job(command: list[str]) -> Job:
    path, *overrides = command
    return job_file.load_as(Job, ROOT / path, overrides)
