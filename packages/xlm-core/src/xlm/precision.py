"""Which number format a run computes in."""

from __future__ import annotations

from typing import Any

import torch

from xlm.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")
LEAST_WIDTH = 128
"""Narrower networks are too small for AMX to pay, see ``resolve_precision``."""


def resolve_precision(precision: str, *, device: str, d_model: int | None = None) -> tuple[str, str]:
    """What ``precision`` means on a device, and why.

    ``auto`` is bf16 where the device has matrix units for it and the network is wide enough to feel them. Time of a
    training step in fp32 over that in bf16, on one core with AMX: d_model 32: 0.93, 64: 1.3 to 1.5, 128: 1.7 to 1.9,
    384: 1.9. With the same core's avx512_bf16 alone: 0.71 to 0.94 at every width, so that is not taken.

    Args:
        precision: As Lightning names it, or ``auto``.
        device: ``cuda``, ``cpu``, ``mps``.
        d_model: Width of the network; None where it is not known.

    Returns:
        (a name that Lightning knows, the reason in a few words).

    Raises:
        UserError: fp16, whose gradients overflow as a matter of course, or an unknown name.
    """
    if precision in PRECISIONS:
        return precision, "as asked"
    if precision != "auto":
        fix = f"use auto or one of {', '.join(PRECISIONS)}"
        raise UserError("is not supported", where="trainer.precision", value=precision, fix=fix)
    if device == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "the GPU has bf16") if has_bf16 else ("32-true", "the GPU has no bf16")
    if device != "cpu" or not has_amx():
        return "32-true", "the device has no bf16 matrix units"
    if d_model is None or d_model < LEAST_WIDTH:
        return "32-true", f"bf16 pays from d_model={LEAST_WIDTH} on"
    return "bf16-mixed", "the CPU has AMX"


def has_amx() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return bool(capabilities.get("amx_bf16", False))
