"""ARLM sampling: cached, recomputed, and transformers' Llama of the same size with its cache; tokens a CPU second.

6 layers x 384, 30,522 tokens, random weights, one thread, no text ends early; the alternatives take turns.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/sampling_arlm.py [--batch 8] [--length 128] [--bf16]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from xlm.nn.attention import KVCache
from xlm.testing.factories import tiny_tokenizer, unconditional_examples
from xlm_arlm.collator import ARLMUnconditionalCollator
from xlm_arlm.model import ARLMTransformer
from xlm_arlm.predictor import ARLMPredictor

VOCAB, D_MODEL, N_LAYERS, N_HEADS = 30_522, 384, 6, 6


class Recomputing(nn.Module):
    """A model that reads the whole text again for every token."""

    def __init__(self, model: ARLMTransformer) -> None:
        super().__init__()
        self.model, self.head, self.max_length = model, model.head, model.max_length

    def new_cache(self, batch: int, length: int) -> KVCache:
        """Nothing is kept but the tokens."""
        self.ids = torch.empty(batch, 0, dtype=torch.int64)
        return KVCache(0, batch, N_HEADS, length, D_MODEL // N_HEADS, torch.float32, "cpu")

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object) -> Tensor:
        """States of the whole text."""
        self.ids = torch.cat([self.ids, input_ids], dim=1)
        return self.model.hidden(self.ids, attention_mask)


def alternatives(n_rows: int, length: int) -> dict[str, Callable[[], object]]:
    """What is compared; each draws ``length`` tokens for every row."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    batch = ARLMUnconditionalCollator(tokenizer=tokenizer)(unconditional_examples(n_rows))
    shape = {"vocab_size": VOCAB, "d_model": D_MODEL, "n_layers": N_LAYERS, "n_heads": N_HEADS}
    ours = ARLMTransformer(max_length=length, **shape).eval()
    options = {"tokenizer": tokenizer, "min_new_tokens": length, "max_new_tokens": length}
    cached, recomputed = (ARLMPredictor(model=model, **options) for model in (ours, Recomputing(ours)))
    size = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS}
    size["intermediate_size"] = 8 * D_MODEL // 3  # three matrices: as many weights as two of 4 x d_model
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, pad_token_id=0, **size)).eval()
    fixed = {"do_sample": True, "top_k": 0, "min_new_tokens": length, "max_new_tokens": length}
    return {
        "cached": lambda: cached.predict(batch),
        "recomputed": lambda: recomputed.predict(batch),
        "transformers": lambda: llama.generate(batch["input_ids"], **fixed),
    }


def main() -> None:
    """Time the alternatives in turn and print rates and ratios of medians."""
    parser = argparse.ArgumentParser()
    for name, default in (("--batch", 8), ("--length", 128), ("--rounds", 3)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--bf16", action="store_true", help="as with trainer.precision=bf16-mixed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs, seconds = alternatives(args.batch, args.length), {}
    for name, run in list(runs.items()) * args.rounds:
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            run()
        seconds.setdefault(name, []).append(time.process_time() - start)
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    print(f"{vars(args)}, load {os.getloadavg()[0]:.1f}, {versions}")
    for name, values in seconds.items():
        ratio = median(values) / median(seconds["cached"])
        print(f"{name:13} {args.batch * args.length / median(values):8.0f} tokens a CPU second; cached x {ratio:5.2f}")


if __name__ == "__main__":
    main()
