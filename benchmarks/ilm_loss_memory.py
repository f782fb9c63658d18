"""Peak memory of ILM's loss, forward and backward, against the size of one array of batch x length x vocabulary.

A linear network stands for the transformer: what is measured is the loss.

    OMP_NUM_THREADS=1 python benchmarks/ilm_loss_memory.py [--batch 32] [--length 1024] [--vocab 50257] [--d_model 64]
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import torch
from linear_cross_entropy import high_water
from torch import Tensor, nn
from xlm.testing.factories import lm_examples, tiny_tokenizer
from xlm_ilm.collator import ILMCollator
from xlm_ilm.loss import ILMLoss


class Reader(nn.Module):
    """States without a transformer: those of the tokens."""

    def __init__(self, vocab: int, d_model: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, d_model), nn.Linear(d_model, vocab, bias=False)
        self.stop_head = nn.Linear(d_model, 1)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States of all columns, and a stop logit from the first."""
        states = self.embed(input_ids)
        return states, self.stop_head(states[:, 0]).squeeze(-1)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 32), ("length", 1024), ("vocab", 50257), ("d_model", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()} {args.device}, load {os.getloadavg()[0]:.1f}")

    torch.manual_seed(0)
    model = Reader(args.vocab, args.d_model).to(args.device)
    loss = ILMLoss(model=model, tokenizer=tiny_tokenizer())
    loss.suppressed = loss.suppressed.to(args.device)
    collate = ILMCollator(tokenizer=tiny_tokenizer(), max_length=args.length, seed=0)
    batch = collate(lm_examples([args.length] * args.batch))
    batch = {name: value.to(args.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    parameters = list(model.parameters())
    before, start = high_water(args.device, reset=True), time.perf_counter()
    torch.autograd.grad(loss.loss_fn(batch)["loss"], parameters, materialize_grads=True, allow_unused=True)
    if args.device == "cuda":
        torch.cuda.synchronize()
    taken, seconds = high_water(args.device) - before, time.perf_counter() - start
    gaps, whole = len(batch["gap_rows"]), args.batch * args.length * args.vocab * 4 / 2**20
    gradients = sum(parameter.numel() for parameter in parameters) * 4 / 2**20
    print(f"batch {args.batch} x {args.length}, {gaps} open gaps, vocabulary {args.vocab}, {args.d_model} features:")
    print(f"peak {taken:.0f} MiB above the start, {gradients:.0f} of them gradients, in {seconds:.0f} s; ")
    print(f"one fp32 array of batch x length x vocabulary: {whole:,.0f} MiB")


if __name__ == "__main__":
    main()
