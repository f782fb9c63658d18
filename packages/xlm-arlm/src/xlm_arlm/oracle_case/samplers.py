"""What is drawn, with a cache and without."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from xlm.noise import Stream, uniforms
from xlm.sampling import draw
from xlm.testing import factories, oracles
from xlm.testing.answers import answers_have_law, causal_law, filtered, n_differences
from xlm.testing.oracles import DRAWS, Measured
from xlm.testing.toy import ExactCausal

from xlm_arlm.oracle_case.parts import (
    BOS,
    CONTROL,
    EOS,
    FEW,
    LENGTH,
    MOST,
    NOTHING,
    PROMPTS,
    VOCAB,
    A,
    B,
    C,
    every_text,
    network,
    of_table,
    pair_examples,
    sampler,
    table,
    text_batch,
    window_batch,
)

TABLE_LAW = "samples of a table have its law"
PROMPT_LAW = "after prompts of unequal length samples have the table's conditional laws"
TEXT_LAW = "a transformer's texts are drawn as often as their likelihoods say"
NEUTRAL_FILTERS = "options that keep everything change no draw"
NO_CONTROL_TOKENS = "nothing is generated that the likelihood leaves out"
ROWS_ALONE = "a prediction does not depend on its batch"
CACHED_IDS = "cached decoding draws the ids of recomputation"
CACHED_LOGITS = "cached decoding gives the logits of recomputation, in the predictor"
CACHED_STATES = "cached decoding gives the logits of recomputation, in the network"
LEAST_LENGTH = "with min_new_tokens=2 EOS is not drawn before"
STOPPED = "with stop=ab a text ends there"
REPEATED = "with repetition_penalty=1.5 tokens of the prompt and the answer are less likely"

HEATED: dict[str, Any] = {"temperature": 0.7, "min_p": 0.2}
TOP_P: dict[str, Any] = {"top_p": 0.8}
TOP_K: dict[str, Any] = {"top_k": 2}


def options_law(options: dict[str, Any]) -> str:
    """Name of the oracle of some token filters."""
    return f"with {' '.join(f'{name}={value}' for name, value in options.items())} samples have the filtered law"


SLOW = {LEAST_LENGTH, STOPPED, REPEATED, *map(options_law, (HEATED, TOP_P, TOP_K))}
"""Of options; left out by ``xlm verify --fast``."""


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        TABLE_LAW: _table_law,
        PROMPT_LAW: _prompt_law,
        TEXT_LAW: _text_law,
        **{options_law(options): partial(_filtered_law, options) for options in (HEATED, TOP_P, TOP_K)},
        LEAST_LENGTH: _least_length,
        STOPPED: _stopped,
        REPEATED: _repeated,
        "draws from bf16 logits have the law of these logits": _bf16_law,
        NEUTRAL_FILTERS: _neutral_filters,
        NO_CONTROL_TOKENS: _no_control_tokens,
        ROWS_ALONE: _rows_stand_alone,
        CACHED_IDS: _cached_ids,
        CACHED_LOGITS: _cached_probabilities,
        CACHED_STATES: _cached_logits,
    }


def _prompts(*prompts: list[int]) -> Any:
    """As many prompts as draws, in turn."""
    return PROMPTS(factories.keyed([{"prompt_ids": prompts[i % len(prompts)]} for i in range(DRAWS)]))


def _nothing() -> Any:
    return NOTHING(factories.unconditional_examples(DRAWS))


_by_recursion = partial(causal_law, eos_id=EOS, never=CONTROL, most=MOST)


def _table_law() -> Measured:
    net = table()
    return answers_have_law(sampler(net).predict(_nothing()), of_table(net))


def _prompt_law() -> Measured:
    net = table()
    prompts: list[list[int]] = [[], [A], [B, C]]
    return answers_have_law(sampler(net).predict(_prompts(*prompts)), *(of_table(net, ids) for ids in prompts))


def _text_law() -> Measured:
    net = network(FEW)
    ended, going_on = every_text(MOST)
    nll = [sampler(net).log_likelihood(batch)["nll"] for batch in (text_batch(ended), window_batch(going_on))]
    law = zip([*ended, *going_on], (-torch.cat(nll)).exp().tolist(), strict=True)
    return answers_have_law(sampler(net, max_new_tokens=MOST).predict(_nothing()), {tuple(ids): p for ids, p in law})


def _filtered_law(options: dict[str, Any]) -> Measured:
    net = network()
    law = _by_recursion(net, [BOS], most=2, choose=lambda logits, _: filtered(logits, **options))
    return answers_have_law(sampler(net, max_new_tokens=2, **options).predict(_nothing()), law)


def _least_length() -> Measured:
    net = network(FEW)

    def patient(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
        eos = torch.arange(len(logits)) == EOS
        return logits.masked_fill(eos & (len(ids) < 2), -math.inf).softmax(0)

    law = _by_recursion(net, [BOS], choose=patient)
    return answers_have_law(sampler(net, max_new_tokens=MOST, min_new_tokens=2).predict(_nothing()), law)


def _stopped() -> Measured:
    net = network(FEW)
    prompts: list[list[int]] = [[], [A]]  # what a prompt ends with does not count
    laws = [_by_recursion(net, [BOS, *ids], ends=lambda answer: answer[-2:] == (A, B)) for ids in prompts]
    return answers_have_law(sampler(net, max_new_tokens=MOST, stop="ab").predict(_prompts(*prompts)), *laws)


def _repeated() -> Measured:
    net, given = network(), ([A, B], [C])

    def punished(prompt: Sequence[int], logits: Tensor, ids: tuple[int, ...]) -> Tensor:
        scores = logits.clone()
        for token in {*prompt, *ids}:
            scores[token] = scores[token] / 1.5 if scores[token] > 0 else scores[token] * 1.5
        return scores.softmax(0)

    laws = [_by_recursion(net, [BOS, *ids], most=2, choose=partial(punished, ids)) for ids in given]
    return answers_have_law(sampler(net, max_new_tokens=2, repetition_penalty=1.5).predict(_prompts(*given)), *laws)


class _InBf16(ExactCausal):
    """The logits rounded, as a network in low precision gives them."""

    def hidden(self, *args: Any, **options: Any) -> Tensor:
        return super().hidden(*args, **options).bfloat16()


def _bf16_law() -> Measured:
    net, precise = table(_InBf16), table()
    net.head = net.head.bfloat16()
    precise.log_next.data = precise.log_next.data.bfloat16().double()
    return answers_have_law(sampler(net).predict(_nothing()), _by_recursion(precise, [BOS], most=LENGTH + 1))


def _neutral_filters() -> Measured:
    neutral: dict[str, Any] = {"temperature": 1.0, "top_k": VOCAB, "top_p": 1.0, "min_p": 0.0}
    neutral |= {"repetition_penalty": 1.0, "stop": "zz", "min_new_tokens": 0}
    net, batch = network(), PROMPTS(factories.seq2seq_examples([3, 0, 6] * 100, [0] * 300, n_letters=4))
    n = n_differences(sampler(net).predict(batch), sampler(net, **neutral).predict(batch))
    return oracles.none_of(n, "entries of the predictions that differ")


def _no_control_tokens() -> Measured:
    net = table()
    net.log_next.data[:, CONTROL] = 20.0  # more probable than any letter
    return oracles.generates_no_control_tokens(sampler(net), NOTHING, factories.unconditional_examples(200))


def _rows_stand_alone() -> Measured:
    return oracles.rows_stand_alone(sampler(network()), PROMPTS, pair_examples() + pair_examples())


def _decoded(net: Any) -> Iterator[tuple[list[int], list[float], Tensor, Int[Tensor, " drawn"]]]:
    """Of each prompt: its answer with EOS, the probabilities it was drawn with, and those of recomputation with the
    tokens that these give."""
    batch = PROMPTS(factories.seq2seq_examples([3, 0, 6, 13, 1, 9] * 2, [0] * 12, n_letters=4))
    events = sampler(net, max_new_tokens=None, trace=True).predict(batch)["trace"]
    for row, (ids, real) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        drawn = [event for event in events if event["row"] == row]
        answer = [int(event["token"]) for event in drawn]
        start = ids[real].tolist()
        logits = net(torch.tensor([[*start, *answer[:-1]]]))[0, len(start) - 1 :].detach()
        logits[:, CONTROL] = -math.inf
        u = uniforms(batch["noise_key"][row, None], len(answer), stream=Stream.SAMPLE, dtype=torch.float64)[0]
        yield answer, [event["probability"] for event in drawn], logits.softmax(-1), draw(logits, u)


def _cached_ids() -> Measured:
    rows = [(torch.tensor(answer), redrawn) for answer, _, _, redrawn in _decoded(network())]
    n = sum(int((answer != redrawn).sum()) for answer, redrawn in rows)
    return oracles.none_of(n, f"of {sum(len(answer) for answer, _ in rows)} tokens are others")


def _cached_probabilities() -> Measured:
    rows = [
        (torch.tensor(said, dtype=torch.float64), p.gather(1, torch.tensor(answer)[:, None])[:, 0])
        for answer, said, p, _ in _decoded(network())
    ]
    cached, whole = (torch.cat(values).log() for values in zip(*rows, strict=True))
    return oracles.equal(cached, whole, 1e-10, "largest difference of log-probabilities")


def _cached_logits() -> Measured:
    net = network()
    ids = torch.tensor(factories.letters([6] * 3, n_letters=4))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :2] = False
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, parts = net.new_cache(3, 6), []
    for columns in (slice(0, 3), slice(3, 4), slice(4, 6)):
        seen = mask[:, : columns.stop]
        parts.append(net(ids[:, columns], seen, positions=positions[:, columns], cache=cache))
    return oracles.equal(torch.cat(parts, 1)[mask], net(ids, mask, positions=positions)[mask], 1e-10)
