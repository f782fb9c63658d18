from __future__ import annotations

from xlm.testing.devices import DeviceContract, sudoku


class TestDevices(DeviceContract):
    overrides = sudoku("mlm")
