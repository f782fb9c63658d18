"""ILM's collator against a plain loop over rows and tokens: process CPU seconds, and their ratio.

Windows of random tokens, one thread; the alternatives take turns. Which tokens are missing differs, what a batch holds
does not.

    OMP_NUM_THREADS=1 python benchmarks/ilm_collator.py [--batch 32] [--length 128] [--repeats 200]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from xlm.noise import noise_key
from xlm.testing.factories import lm_examples, tiny_tokenizer
from xlm_ilm.collator import ILMCollator

PAD, BOS = 0, 2
BATCHES = 20  # a turn, as a data worker makes one after another


def plain(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch token by token; Python's own generator chooses what is missing."""
    inputs, pairs, full = [], [], []
    for i, example in enumerate(examples):
        chance = random.Random(int(example["noise_key"]))
        ids = example["input_ids"].tolist()
        missing = set(chance.sample(range(len(ids)), chance.randint(0, len(ids))))
        kept = [BOS]
        for place, token in enumerate(ids):
            if place in missing:
                pairs.append((i, len(kept) - 1, token))
            else:
                kept.append(token)
        inputs.append(kept)
        full.append([BOS, *ids])
    seq = max(map(len, inputs))
    is_open = [len(row) < len(whole) for row, whole in zip(inputs, full, strict=True)]
    gaps = [[is_open[i]] * len(row) + [False] * (seq - len(row)) for i, row in enumerate(inputs)]
    return {
        "input_ids": torch.tensor([row + [PAD] * (seq - len(row)) for row in inputs]),
        "attention_mask": torch.tensor([[True] * len(row) + [False] * (seq - len(row)) for row in inputs]),
        "gaps": torch.tensor(gaps),
        "gap_rows": torch.tensor([i * seq + j for i, row in enumerate(gaps) for j, gap in enumerate(row) if gap]),
        "rows": torch.tensor([i * seq + column for i, column, _ in pairs]),
        "tokens": torch.tensor([token for _, _, token in pairs]),
        "n_dropped": torch.tensor([len(whole) - len(row) for row, whole in zip(inputs, full, strict=True)]),
        "full_ids": torch.tensor(full),
        "span": torch.tensor([[-1] + [0] * (len(whole) - 1) for whole in full]),
        "n_tokens": torch.tensor([len(whole) - 1 for whole in full]),
        "index": torch.tensor([example["index"] for example in examples]),
        "noise_key": torch.tensor([example["noise_key"] for example in examples]),
    }


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 32), ("length", 128), ("repeats", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, load {os.getloadavg()[0]:.1f}")

    rows = lm_examples([args.length] * args.batch)
    rows = [{**row, "input_ids": np.array(row["input_ids"])} for row in rows]
    collate = ILMCollator(tokenizer=tiny_tokenizer(), max_length=args.length, seed=0)
    steps: dict[str, Callable[[list[dict[str, Any]]], Any]] = {"ours": collate, "loop": plain}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.repeats // BATCHES + 1):  # the first turn warms up
        for name, step in steps.items():
            for number in range(turn * BATCHES, (turn + 1) * BATCHES):
                places = range(number * args.batch, (number + 1) * args.batch)
                examples = [
                    {**row, "position": place, "noise_key": noise_key(0, 0, place)}
                    for row, place in zip(rows, places, strict=True)
                ]
                start = time.process_time()
                step(examples)
                seconds[name].append(time.process_time() - start)
    ours, loop = (median(seconds[name][BATCHES:]) for name in steps)
    rate = f"{args.batch / ours:,.0f} examples/s, the loop {args.batch / loop:,.0f}"
    print(f"batch {args.batch}, length {args.length}: {rate}; loop/ours {loop / ours:.1f} (CPU seconds)")


if __name__ == "__main__":
    main()
