"""Ask SLURM to run this job again."""

from __future__ import annotations

import logging
import os
import re
import subprocess

logger = logging.getLogger(__name__)


def job() -> str | None:
    """The id of the SLURM job that this process belongs to; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    found = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return found if found and re.fullmatch(r"[0-9_]+", found) else None


def requeue() -> bool:
    """Put this job into the queue again; False, with a warning, when SLURM refuses."""
    command = ["scontrol", "requeue", str(job())]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        problem = f"{error.strerror}: scontrol"
    else:
        problem = answer.stderr.strip() or f"exit code {answer.returncode}" if answer.returncode else ""
    if problem:
        logger.warning("the job was not queued again (%s): submit it, its checkpoint is kept", problem)
    return not problem
