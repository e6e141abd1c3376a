"""Whether this process is a job that was submitted to a cluster, by `ray job submit` or by a RayJob, which calls it.

Such a job is started again by something that cannot answer questions: a retry loop, RayJob's backoff. So its command
means `--resume auto` where it does not say otherwise.
"""

import os

# Ray sets it for the entrypoint of a job, and for nothing else.
_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def is_submitted() -> bool:
    return _OF_A_JOB in os.environ


def resume_by_default() -> str:
    """What `--resume` is where the command does not say."""
    return "auto" if is_submitted() else "no"
