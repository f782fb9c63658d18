import pytest
import torch
from xlm import precision
from xlm.errors import UserError
from xlm.precision import resolve_precision


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_what_is_asked_for_is_given(name):
    assert resolve_precision(name, device="cpu") == (name, "as asked")


@pytest.mark.parametrize("name", ["16-mixed", "bf17"])
def test_fp16_and_unknown_names_are_refused(name):
    with pytest.raises(UserError, match=rf"trainer\.precision \({name}\); fix: use auto or one of 32-true"):
        resolve_precision(name, device="cuda")


@pytest.mark.parametrize(
    ("amx", "d_model", "expected"),
    [(True, 128, "bf16-mixed"), (True, 127, "32-true"), (True, None, "32-true"), (False, 768, "32-true")],
)
def test_on_a_cpu_bf16_needs_matrix_units_and_a_wide_network(monkeypatch, amx, d_model, expected):
    monkeypatch.setattr(precision, "has_amx", lambda: amx)
    assert resolve_precision("auto", device="cpu", d_model=d_model)[0] == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_on_a_gpu_bf16_needs_hardware(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert resolve_precision("auto", device="cuda", d_model=32)[0] == expected


def test_other_devices_compute_in_fp32(monkeypatch):
    monkeypatch.setattr(precision, "has_amx", lambda: True)
    assert resolve_precision("auto", device="mps", d_model=768)[0] == "32-true"


def test_whether_there_are_matrix_units_can_be_asked_anywhere():
    assert precision.has_amx() in (True, False)
