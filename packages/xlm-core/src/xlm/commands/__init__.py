"""One module a command. Each has ``Options`` (the keys of this call), ``KEYS`` (others worth knowing) and ``run``.

They import torch, Lightning and Hydra when they run, not when they are looked at.
"""

from __future__ import annotations

COMMANDS = {
    "train": "train, validate and test; writes a run directory",
    "eval": "likelihoods and prediction metrics of a finished run",
    "generate": "text from prompts, templates or nothing",
    "replay": "how a text came about, step by step (generate trace=true)",
    "prepare_data": "build the tokenizer and the data caches of a task",
    "check": "show what a configuration means: one decoded batch, one step",
    "compare": "results of finished runs and evaluations, side by side",
    "verify": "whether what this installation prints is true: oracles of every family",
    "scaffold": "a complete package for a family of your own",
    "info": "installed families and tasks, which go together, and what is left out and why",
}
"""Name and summary of every command."""
