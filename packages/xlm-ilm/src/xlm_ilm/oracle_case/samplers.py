"""What is drawn, against laws by recursion over texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from xlm.testing import factories, oracles
from xlm.testing.answers import Law, answers_have_law, filtered
from xlm.testing.insertion import ExactInserter, InconsistentInserter, n_texts, random_text_table
from xlm.testing.oracles import DRAWS, Measured

from xlm_ilm import collator
from xlm_ilm.oracle_case.parts import (
    BOS,
    EOS,
    TOKENIZER,
    VOCAB,
    A,
    B,
    C,
    exact,
    gap_collator,
    inconsistent,
    network,
    pair_examples,
    prompt_collator,
    sampler,
    text_law,
)

TABLE_LAW = "samples of the exact network have its table's law"
RECURSION = "samples have the law of the recursion over texts"
ALL_PAIRS = "filters that keep every pair leave the law as it is"
TWO_STAGES = "drawn in two stages, with filters that keep everything, samples have the same law"
WINDOWS = "in windows of given length samples of the exact network have its table's law"
TEMPLATES = "templates are filled in by their own law"
FREE_GAPS = "gaps of free length share their room and have their own law"
PROMPTS = "after prompts of unequal length answers have their own laws"
EOS_LAW = "EOS is a token like others in windows, and is not inserted where the length is free"
PAIR_FILTERS = "a joint draw filters pairs: top_p=0.7"
GAP_FILTERS = "a two-stage draw filters gaps, then tokens: gap_top_k=2 gap_temperature=3.0 top_p=0.6"
TOP_K = "a two-stage draw filters gaps, then tokens: gap_min_p=0.5 temperature=0.5 top_k=2"
THRESHOLD = "with stop_rule=threshold a text ends as soon as p_stop reaches it"
LEAST_LENGTH = "with min_new_tokens=2 no text ends before"
PARALLEL = "far gaps are filled in one call, each by its own softmax"
NEAR = "gaps nearer than gap_distance are filled one after the other"
NO_CONTROL_TOKENS = "nothing is generated that the likelihood leaves out"
ROWS_ALONE = "a prediction does not depend on its batch"
GIVEN_STAYS = "nothing is inserted outside the open gaps"


SLOW = {
    ALL_PAIRS,
    TWO_STAGES,
    FREE_GAPS,
    EOS_LAW,
    PAIR_FILTERS,
    GAP_FILTERS,
    TOP_K,
    THRESHOLD,
    LEAST_LENGTH,
    PARALLEL,
    NEAR,
}
"""Of options; left out by ``xlm verify --fast``."""


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        TABLE_LAW: _table_law,
        RECURSION: partial(_recursion, {}),
        ALL_PAIRS: partial(_recursion, {"top_k": 1000, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}),
        TWO_STAGES: partial(
            _recursion, {"draw": "two_stage", "top_k": 1000, "gap_top_k": 1000, "gap_temperature": 1.0}
        ),
        WINDOWS: _window_law,
        TEMPLATES: _template_law,
        FREE_GAPS: _free_gap_law,
        PROMPTS: _prompt_law,
        EOS_LAW: _eos_law,
        PAIR_FILTERS: _pair_filters,
        GAP_FILTERS: partial(_gap_filters, {"top_k": 2, "temperature": 3.0}, {"top_p": 0.6}),
        TOP_K: partial(_gap_filters, {"min_p": 0.5}, {"temperature": 0.5, "top_k": 2}),
        THRESHOLD: _threshold,
        LEAST_LENGTH: _least_length,
        PARALLEL: partial(_parallel, gap_distance=3),
        NEAR: partial(_parallel, gap_distance=4),
        "draws from bf16 states have the law of the same numbers in fp64": _bf16_law,
        NO_CONTROL_TOKENS: _no_control_tokens,
        ROWS_ALONE: _rows_stand_alone,
        GIVEN_STAYS: _given_stays,
    }


def _canvas(max_length: int) -> Any:
    """A batch of as many empty texts as draws."""
    collate: Any = collator.ILMUnconditionalCollator(tokenizer=TOKENIZER, max_length=max_length)
    return collate(factories.unconditional_examples(DRAWS))


def _template(*tokens: int | str) -> dict[str, Any]:
    """One example from given tokens, ``?`` for a missing one and ``*`` for a gap of any length."""
    return {
        "input_ids": [token if isinstance(token, int) else A for token in tokens],
        "fixed": [isinstance(token, int) for token in tokens],
        "free": [token == "*" for token in tokens],
    }


def _filled(sample: Any, max_length: int, *templates: dict[str, Any]) -> Any:
    """What a sampler makes of these templates, in turn."""
    rows = factories.keyed([templates[i % len(templates)] for i in range(DRAWS)])
    return sample.predict(gap_collator(max_length)(rows))


def _of_table(net: ExactInserter) -> Law:
    return {tuple(ids): float(p) for ids, p in zip(net.texts(), net.table, strict=True) if p > 0}


def _table_law() -> Measured:
    net = exact()
    return answers_have_law(sampler(net).predict(_canvas(4)), _of_table(net))


def _recursion(options: dict[str, Any]) -> Measured:
    net = inconsistent()
    return answers_have_law(sampler(net, **options).predict(_canvas(3)), text_law(net))


def _window_law() -> Measured:
    table = random_text_table(2, 4)
    table[: n_texts(2, 3)] = 0
    net = ExactInserter(table / table.sum(), token_ids=[A, B], vocab_size=VOCAB)
    return answers_have_law(_filled(sampler(net), 4, _template(*"????")), _of_table(net))


def _template_law() -> Measured:
    net = inconsistent(5)
    law = text_law(net, [A, B], span=[0, -1, 1], room=[2, 0, 1], free=False)
    return answers_have_law(_filled(sampler(net), 5, _template("?", "?", A, B, "?")), law)


def _free_gap_law() -> Measured:
    net = inconsistent(4)
    laws = [
        text_law(net, [A, B], span=span, room=room)
        for span, room in (([-1, 0, -1], [0, 2, 0]), ([0, -1, 0], [2, 0, 2]))
    ]
    return answers_have_law(_filled(sampler(net), 4, _template(A, "*", B), _template("*", A, B, "*")), *laws)


def _prompt_law() -> Measured:
    net = inconsistent(4)
    prompts: list[list[int]] = [[], [B], [B, A]]
    laws = [text_law(net, ids, span=[-1] * len(ids) + [0], room=[0] * len(ids) + [2]) for ids in prompts]
    answers = [{ids[len(prompt) :]: p for ids, p in law.items()} for prompt, law in zip(prompts, laws, strict=True)]
    rows = factories.keyed([{"prompt_ids": prompts[i % 3]} for i in range(DRAWS)])
    return answers_have_law(sampler(net, max_new_tokens=2).predict(prompt_collator()(rows)), *answers)


def _eos_law() -> Measured:
    net = inconsistent(2, (EOS, A, B))
    laws = [text_law(net, room=[2], never=[EOS]), text_law(net, room=[2], free=False)]
    return answers_have_law(_filled(sampler(net), 2, _template("*"), _template("?", "?")), *laws)


def _pair_filters() -> Measured:
    net = inconsistent()

    def pairs(logits: Float[Tensor, "gaps vocab"]) -> Tensor:
        return filtered(logits.flatten(), top_p=0.7).reshape(logits.shape)

    return answers_have_law(sampler(net, top_p=0.7).predict(_canvas(3)), text_law(net, pairs=pairs))


def _gap_filters(gaps: dict[str, Any], tokens: dict[str, Any]) -> Measured:
    net = inconsistent(token_ids=(A, B, C))

    def pairs(logits: Float[Tensor, "gaps vocab"]) -> Tensor:
        given_gap = torch.stack([filtered(row, **tokens) for row in logits])
        return filtered(logits.logsumexp(1), **gaps)[:, None] * given_gap

    options = {"draw": "two_stage", **tokens, **{f"gap_{name}": value for name, value in gaps.items()}}
    return answers_have_law(sampler(net, **options).predict(_canvas(3)), text_law(net, pairs=pairs))


def _threshold() -> Measured:
    net = inconsistent()
    law = text_law(net, stops=lambda p: float(p >= 0.7))
    return answers_have_law(sampler(net, stop_rule="threshold", stop_threshold=0.7).predict(_canvas(3)), law)


def _least_length() -> Measured:
    net, patient = inconsistent(), inconsistent()
    patient.stop_logits.data[: n_texts(2, 1)] = -1e4
    return answers_have_law(sampler(net, min_new_tokens=2).predict(_canvas(3)), text_law(patient))


def _parallel(gap_distance: int) -> Measured:
    """The gaps are three tokens apart."""
    net, given = inconsistent(5), [A, B, A]
    if gap_distance > 3:
        law = text_law(net, given, span=[0, -1, -1, 1], room=[1, 0, 0, 1], free=False)
    else:
        first, last = net(torch.tensor([[BOS, *given]]))[0, [0, 3]].detach().softmax(-1)
        law = {(a, *given, b): float(first[a] * last[b]) for a in (A, B) for b in (A, B)}
    sample = sampler(net, tokens_per_step=2, gap_distance=gap_distance)
    return answers_have_law(_filled(sample, 5, _template("?", *given, "?")), law)


class _Rounded(InconsistentInserter):
    """Says everything in bf16's precision."""

    def read(self, *args: Any, **options: Any) -> Any:
        states, stop_logit = super().read(*args, **options)
        return states.bfloat16().to(self.head.weight.dtype), stop_logit.bfloat16()


def _bf16_law() -> Measured:
    low, precise = (_Rounded(token_ids=[A, B], vocab_size=VOCAB, length=3) for _ in range(2))
    low.head = low.head.bfloat16()
    return answers_have_law(sampler(low).predict(_canvas(3)), text_law(precise))


def _no_control_tokens() -> Measured:
    net = network()
    net.head.weight.data[: EOS + 1] = 2 * net.head.weight.data[C]  # more probable than c wherever c is
    collate: Any = collator.ILMUnconditionalCollator(tokenizer=TOKENIZER, max_length=8)
    return oracles.generates_no_control_tokens(sampler(net), collate, factories.unconditional_examples(200))


def _rows_stand_alone() -> Measured:
    return oracles.rows_stand_alone(sampler(network()), prompt_collator(), pair_examples() * 2)


def _given_stays() -> Measured:
    """Given tokens of templates whose gaps have a size, and the tokens that are generated there."""
    examples = factories.infill_examples([3, 8, 5, 12, 1] * 20, n_letters=4)
    predictions = sampler(network()).predict(gap_collator()(examples))
    n = 0
    for row, ids, length in zip(examples, predictions["ids"].tolist(), predictions["lengths"].tolist(), strict=True):
        given = [(place, token) for place, token in enumerate(row["input_ids"]) if row["fixed"][place]]
        n += length != len(row["input_ids"]) or any(ids[place] != token for place, token in given)
    return oracles.none_of(n, "of 100 templates have their given tokens elsewhere")
