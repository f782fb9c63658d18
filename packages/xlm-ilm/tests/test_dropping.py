from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from xlm.noise import noise_keys, uniforms
from xlm_ilm.dropping import choose, drop, gap_spans, span_numbers

BOS, PAD = 2, 0


def loop(full: list[int], droppable: list[bool], dropped: list[bool]) -> dict[str, list[int]]:
    """One row without padding, token by token."""
    kept, open_gaps, gaps, tokens = [], [], [], []
    for place, token in enumerate(full):
        if dropped[place]:
            gaps.append(len(kept) - 1)
            tokens.append(token)
        else:
            kept.append(token)
            left = place if droppable[place] else place + 1  # walk over the span that this gap lies in
            while left > 0 and left < len(full) and droppable[left] and droppable[left - 1]:
                left -= 1
            misses = False
            while left < len(full) and droppable[left]:
                misses = misses or dropped[left]
                left += 1
            open_gaps.append(misses)
    return {"kept": kept, "open": open_gaps, "gaps": gaps, "tokens": tokens}


@pytest.mark.parametrize("seed", range(30))
def test_what_is_kept_and_where_the_rest_belongs_is_what_a_loop_over_tokens_says(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (6,), generator=generator)
    width = int(lengths.max()) + 1
    full = torch.randint(4, 12, (6, width), generator=generator)
    full[:, 0] = BOS
    mask = torch.arange(width) <= lengths[:, None]
    full[~mask] = PAD
    droppable = (torch.rand(6, width, generator=generator) < 0.7) & mask
    droppable[:, 0] = False
    dropped = droppable & (torch.rand(6, width, generator=generator) < 0.5)
    kept = drop(full, mask, span_numbers(droppable), dropped, PAD)
    seq, rows, tokens, gap_rows = kept.input_ids.shape[1], [], [], []
    for i, length in enumerate(lengths.tolist()):
        said = loop(*(values[i, : length + 1].tolist() for values in (full, droppable, dropped)))
        n_kept = len(said["kept"])
        assert kept.input_ids[i].tolist() == said["kept"] + [PAD] * (seq - n_kept)
        assert kept.gaps[i].tolist() == said["open"] + [False] * (seq - n_kept)
        if kept.attention_mask is not None:
            assert kept.attention_mask[i].tolist() == [column < n_kept for column in range(seq)]
        assert int(kept.n_dropped[i]) == len(said["tokens"])
        rows += [i * seq + gap for gap in said["gaps"]]
        gap_rows += [i * seq + gap for gap, is_open in enumerate(said["open"]) if is_open]
        tokens += said["tokens"]
    assert kept.rows.tolist() == rows
    assert kept.tokens.tolist() == tokens
    assert kept.gap_rows.tolist() == gap_rows
    assert (kept.attention_mask is None) == all(int(n) == seq for n in (kept.input_ids != PAD).sum(1))


def test_every_missing_token_belongs_to_an_open_gap():
    full = torch.tensor([[BOS, 4, 5, 6, 7, 8]])
    droppable = torch.tensor([[False, True, False, True, True, False]])
    for chosen in itertools.product([False, True], repeat=3):
        dropped = torch.zeros_like(droppable)
        dropped[0, [1, 3, 4]] = torch.tensor(chosen)
        kept = drop(full, None, span_numbers(droppable), dropped, PAD)
        assert kept.gaps.flatten()[kept.rows].all()


def test_a_span_that_misses_nothing_is_closed():
    full = torch.tensor([[BOS, 4, 5, 6, 7]])
    droppable = torch.tensor([[False, True, True, False, True]])
    dropped = torch.tensor([[False, False, True, False, False]])
    kept = drop(full, None, span_numbers(droppable), dropped, PAD)
    assert kept.input_ids.tolist() == [[BOS, 4, 6, 7]]
    assert kept.gaps.tolist() == [[True, True, False, False]]
    of_gap, missing = gap_spans(span_numbers(droppable), dropped)
    assert of_gap.tolist() == [[0, 0, 0, 1, 1]]
    assert missing.tolist() == [[1, 1, 1, 0, 0]]


def test_a_text_without_tokens_misses_none():
    kept = drop(torch.tensor([[BOS]]), None, torch.tensor([[-1]]), torch.tensor([[False]]), PAD)
    assert kept.input_ids.tolist() == [[BOS]]
    assert kept.n_dropped.tolist() == [0]
    assert len(kept.rows) == len(kept.gap_rows) == 0


def test_as_many_tokens_are_chosen_as_are_asked_for_and_only_droppable_ones():
    droppable = torch.tensor([[False, True, True, False, True, True]]).expand(5, -1)
    u = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = choose(droppable, torch.arange(5), u)
    assert chosen.sum(1).tolist() == [0, 1, 2, 3, 4]
    assert not (chosen & ~droppable).any()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_set_of_a_size_is_equally_likely(n):
    keys = noise_keys(0, 0, torch.arange(12_000))
    droppable = torch.tensor([[False, True, True, False, True, True, True]]).expand(len(keys), -1)
    u = uniforms(keys, 7, dtype=torch.float64)
    chosen = choose(droppable, torch.full((len(keys),), n), u)[:, [1, 2, 4, 5, 6]]
    counts = Counter(map(tuple, chosen.tolist()))
    sets = [s for s in itertools.product([False, True], repeat=5) if sum(s) == n]
    assert sum(counts[s] for s in sets) == len(keys)
    assert chisquare([counts[s] for s in sets]).pvalue > 1e-3
