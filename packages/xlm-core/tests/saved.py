"""Checkpoints of a network of three tensors."""

from __future__ import annotations

from torch import nn
from xlm.checkpoint import AtomicCheckpointIO


def model(width=3):
    return nn.Sequential(nn.Embedding(5, width), nn.Linear(width, 5))


def content(net, step, *, ema=None):
    state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    averaged = {} if ema is None else {"current_model_state": state, "averaging_state": {}}
    shown = state if ema is None else {f"model.{name}": tensor for name, tensor in ema.state_dict().items()}
    return {"state_dict": shown, "global_step": step, "optimizer_states": [], **averaged}


def save(folder, step, **options):
    path = folder / f"{step:09d}.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(model(), step, **options), path)
    return path
