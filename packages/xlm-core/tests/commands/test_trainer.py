"""What the run's machinery is told."""

from __future__ import annotations

import pytest
import torch
from xlm.commands.trainer import TrainerSettings, ddp
from xlm.errors import UserError


@pytest.mark.parametrize(
    ("settings", "several"),
    [
        ({}, False),
        ({"devices": 2}, True),
        ({"devices": [1]}, False),
        ({"devices": [0, 1]}, True),
        ({"num_nodes": 2}, True),
        ({"devices": "auto"}, False),
        ({"devices": -1}, False),
    ],
)
def test_several_devices_are_several_processes(settings, several):
    assert TrainerSettings(accelerator="cpu", **settings).several_processes() is several


def test_all_devices_are_as_many_as_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count in (1, 2):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert TrainerSettings(devices="auto").several_processes() is (count > 1)


@pytest.mark.parametrize("strategy", [None, "given"])
def test_ranks_exchange_no_buffers(strategy, tmp_path):
    """A forward pass would wait for the other ranks, which may have fewer batches to evaluate."""
    given = None if strategy is None else ddp()
    settings = TrainerSettings(accelerator="cpu", devices=2, enable_progress_bar=False)
    trainer = settings.build(steps=1, strategy=given, d_model=None, logger=False, default_root_dir=tmp_path)
    assert trainer.strategy._ddp_kwargs["broadcast_buffers"] is False


def test_devices_that_are_not_there_are_the_users_mistake():
    with pytest.raises(UserError, match=r"devices.* in trainer; fix: "):
        TrainerSettings(accelerator="cpu", devices=[0]).build(steps=1, strategy=None, d_model=None)
