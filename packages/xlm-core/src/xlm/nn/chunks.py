"""What products with a large output head share: how many rows at a time, and in which dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**26, "accelerator": 2**28}
"""Memory for the logits of one chunk; an accelerator adds its fp32 copies of them."""

MAX_LOGITS = 2**24
"""Logits that may exist at a time in a sampler, whatever their dtype."""

SIZES_AN_OCTAVE = 16
"""Between n and 2 n rows, oneDNN (bf16 on a CPU) sees no more numbers of rows than these. It keeps what it prepares for
each number that it sees, 3 MB and more, and losses of hidden tokens bring a new one nearly every step."""

CACHE_BYTES = 2**20
"""Memory for what a CPU works on at a time around a chunk's large matrix products: it should not leave the cache."""


def product_dtype(states: Tensor) -> torch.dtype:
    """What matrix products run in: autocast's dtype, or the states' own."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def chunk_rows(device: str, dtype: torch.dtype, vocab: int) -> int:
    """Rows whose logits exist at a time."""
    return max(1, CHUNK_BYTES["cpu" if device == "cpu" else "accelerator"] // (dtype.itemsize * vocab))


def missing_rows(n: int) -> int:
    """Rows of weight zero that bring ``n`` to the next of the ``SIZES_AN_OCTAVE``: at most one for sixteen."""
    step = max(1, (1 << n.bit_length()) // (2 * SIZES_AN_OCTAVE))
    return -n % step


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b. In low precision a chunk's product is rounded, the sum over chunks is not."""
    for part in slices(len(total), cached_rows(b)):
        if b.dtype == total.dtype:
            total[part].addmm_(a[part], b)
        else:
            total[part] += a[part] @ b


def cached_rows(x: Tensor) -> int:
    """Rows of this width and dtype that a CPU's cache holds; elsewhere there is nothing to gain."""
    return max(1, CACHE_BYTES // (x.itemsize * x.shape[1])) if x.device.type == "cpu" else 2**62


def slices(rows: int, size: int) -> Iterator[slice]:
    """Equal parts of at most ``size`` rows."""
    n = math.ceil(rows / size)
    return (slice(i * rows // n, (i + 1) * rows // n) for i in range(n))
