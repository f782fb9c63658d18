"""Head and cross-entropy: every position by the plain formula (A) against the selected rows in chunks (B), in turn.

Seconds depend on the machine and its load; the ratio of medians is the result.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F
from xlm.nn.linear_cross_entropy import linear_cross_entropy


def high_water(device: str, reset: bool = False) -> float:
    """Peak memory in MiB since the last reset: allocated on a GPU, resident on Linux, else nan."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        if reset:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        with open("/proc/self/status") as file:
            return next(float(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    except OSError:
        return float("nan")


def measure(step: Callable[[], Tensor], leaves: list[Tensor], device: str) -> tuple[float, float]:
    """Seconds and MiB above the starting point of one forward and backward pass."""
    before, start = high_water(device, reset=True), time.perf_counter()
    torch.autograd.grad(step(), leaves)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, high_water(device) - before


def main() -> None:
    """Print one line a dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 1024), ("d_model", 768), ("vocab", 30522), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--selected", type=float, default=0.5, help="fraction of positions that the loss needs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"torch {torch.__version__}, {platform.machine()} {args.device}, {threads} threads, load {load:.1f}")

    torch.manual_seed(0)
    states = torch.randn(args.rows, args.d_model, device=args.device, requires_grad=True)
    weight = (0.02 * torch.randn(args.vocab, args.d_model, device=args.device)).requires_grad_()
    targets = torch.randint(args.vocab, (args.rows,), device=args.device)
    chosen = torch.rand(args.rows, device=args.device) < args.selected
    steps: dict[str, Callable[[], Tensor]] = {
        "A": lambda: (F.cross_entropy(F.linear(states, weight), targets, reduction="none") * chosen).sum(),
        "B": lambda: linear_cross_entropy(states[chosen], weight, targets[chosen])[0],
    }
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast(args.device, dtype=dtype, enabled=dtype is torch.bfloat16):
            runs = [
                {name: measure(step, [states, weight], args.device) for name, step in steps.items()}
                for _ in range(args.repeats + 1)  # the first turn warms up
            ]
        a, b = ([median(run[name][i] for run in runs[1:]) for i in range(2)] for name in "AB")
        times = f"A {a[0]:.3f} s, B {b[0]:.3f} s, A/B {a[0] / b[0]:.2f}"
        print(f"{dtype}: {times}; peak memory A {a[1]:.0f} MiB, B {b[1]:.0f} MiB, A - B {a[1] - b[1]:.0f} MiB")


if __name__ == "__main__":
    main()
