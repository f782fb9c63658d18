"""The toy family on a GPU; and what the contract itself notices, on the CPU."""

from __future__ import annotations

import pytest
from xlm.testing import devices
from xlm.testing.devices import DeviceContract


@pytest.mark.usefixtures("toy")
class TestDevices(DeviceContract):
    overrides = ("experiment=toy_short",)


def test_another_likelihood_on_the_other_device_is_noticed(monkeypatch, tmp_path):
    found = iter([1.0, 1.01])
    monkeypatch.setattr(devices, "nats_per_token", lambda *_: next(found))
    with pytest.raises(AssertionError, match=r"1\.0 nats per token there, 1\.01 on the CPU"):
        TestDevices().test_a_likelihood_is_the_same_on_both_devices(tmp_path)


@pytest.mark.slow
def test_the_contract_holds_between_the_cpu_and_itself(monkeypatch, toy, tmp_path):
    monkeypatch.setattr(TestDevices, "device", "cpu")
    TestDevices().test_a_likelihood_is_the_same_on_both_devices(tmp_path)
