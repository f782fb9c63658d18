"""What must hold of ILM, and faults that would break it: run by ``xlm verify`` and by the tests.

An ``ExactInserter`` knows the posterior of a table of texts, so what is drawn from it must have the table's law; an
``InconsistentInserter`` has logits of no joint law, as a trained network does: recursion over rows and enumeration of
orders say what its texts cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from xlm.protocols import Example
from xlm.testing import factories, oracles
from xlm.testing.answers import Law, answers_have_law, filtered, n_differences
from xlm.testing.insertion import ExactInserter, InconsistentInserter, n_texts, random_text_table
from xlm.testing.insertion_laws import Steps, insertion_bound, insertion_law, insertion_steps, order_log_probabilities
from xlm.testing.oracles import DRAWS, Measured, Mutation, Oracle, OracleCase
from xlm.testing.toy import entropy

from xlm_ilm import collator, dropping, loss, model, oracle_faults, predictor
from xlm_ilm.predictor.sampler import GAP_STREAM

TOKENIZER = factories.tiny_tokenizer(n_letters=4)
PAD, CONTROL, BOS, EOS, LETTERS, VOCAB = 0, [0, 1, 2], 2, 3, [4, 5, 6, 7], 8
A, B, C, D = LETTERS

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
ORDERS = "the orders of a text together have the probability of the recursion over texts"
MASS = "the probabilities of all texts and of the truncated tail sum to 1"
BOUND = "the bound is the mean over numbers and sets of missing tokens"
TIGHTER = "the bound from two orders is that of enumeration, between the bound and -log p"
OWN_COST = "the likelihood is the model's, whatever the sampler's options"
LOSS_BOUND = "the loss's estimate of -log p has the bound as its mean"
ABOVE = "the mean of the loss's estimate is not below -log p, the sum over all orders"
FORMULA = "the loss is the dense formula, row by row"
STATIONARY = "the expected loss is stationary at the exact network"
ADDS_UP = "the loss adds up over texts of unequal length"
GRADIENT = "the gradient of the loss is that of finite differences"
UNIFORM = "how many tokens are missing is uniform, and so is which"
SPREAD = "numbers of missing tokens are spread several times more evenly than independent ones"
NO_LEAK = "no input says what is missing"
ANSWERS_UNSEEN = "inputs to complete do not depend on the answer"
BOUND_ALONE = "a bound does not depend on its batch"
ORDERS_ALONE = "a bound from orders does not depend on its batch"
PADDING = "padding changes neither a logit nor p_stop"
PLACES = "where tokens stand in memory changes nothing"


def case() -> OracleCase:
    """The oracles and mutations of ILM."""
    measures: dict[str, Callable[[], Measured]] = {
        TABLE_LAW: _table_law,
        RECURSION: partial(_text_law, {}),
        ALL_PAIRS: partial(_text_law, {"top_k": 1000, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}),
        TWO_STAGES: partial(_text_law, {"draw": "two_stage", "top_k": 1000, "gap_top_k": 1000, "gap_temperature": 1.0}),
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
        ORDERS: _orders,
        MASS: _mass,
        BOUND: _bound,
        TIGHTER: _two_orders,
        "every order of the exact network gives -log of its table": _exact_orders,
        "the bound of the exact network is its table's entropy": _exact_bound,
        BOUND_ALONE: partial(_costs_stand_alone, "bound"),
        ORDERS_ALONE: partial(_costs_stand_alone, "orders"),
        OWN_COST: _own_cost,
        LOSS_BOUND: _loss_bound,
        ABOVE: _above,
        FORMULA: _formula,
        STATIONARY: _stationary,
        ADDS_UP: _adds_up_texts,
        "the loss adds up over prompts and targets": _adds_up_pairs,
        GRADIENT: _gradient,
        UNIFORM: _uniform,
        SPREAD: _spread,
        NO_LEAK: _nothing_leaks,
        ANSWERS_UNSEEN: _answers_unseen,
        PLACES: _places,
        PADDING: _padding,
    }
    return OracleCase([Oracle(name, measure) for name, measure in measures.items()], mutations())


# Parts


def network() -> Any:
    """Small, in fp64, far from uniform and from certain; its texts have a few tokens."""
    torch.manual_seed(0)
    net = model.ILMTransformer(vocab_size=VOCAB, max_length=12, d_model=16, n_layers=2, n_heads=2, d_ff=32)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    nn.init.constant_(net.stop_head.bias, -1.0)
    net.double().eval()
    return net


def exact(n_letters: int = 2, length: int = 4) -> ExactInserter:
    """Knows the posterior of a table of all texts."""
    table = random_text_table(n_letters, length)
    return ExactInserter(table, token_ids=LETTERS[:n_letters], vocab_size=VOCAB)


def inconsistent(length: int = 3, token_ids: Sequence[int] = (A, B)) -> InconsistentInserter:
    """Belongs to no joint law."""
    return InconsistentInserter(token_ids=token_ids, vocab_size=VOCAB, length=length)


def sampler(net: Any, **options: Any) -> predictor.ILMPredictor:
    """The predictor."""
    return predictor.ILMPredictor(model=net, tokenizer=TOKENIZER, **options)


def _loss(net: Any, **options: Any) -> loss.ILMLoss:
    return loss.ILMLoss(model=net, tokenizer=TOKENIZER, **options)


def _texts(space: Any = "open", max_length: int = 8) -> Any:
    return collator.ILMCollator(tokenizer=TOKENIZER, seed=0, max_length=max_length, event_space=space)


def _pairs() -> Any:
    return collator.ILMSeq2SeqCollator(tokenizer=TOKENIZER, seed=0, max_prompt_length=6, max_target_length=5)


def _templates() -> Any:
    return collator.ILMInfillCollator(tokenizer=TOKENIZER, seed=0, max_length=8)


def _canvas(max_length: int) -> Any:
    """A batch of as many empty texts as draws."""
    collate: Any = collator.ILMUnconditionalCollator(tokenizer=TOKENIZER, max_length=max_length)
    return collate(factories.unconditional_examples(DRAWS))


def _prompts() -> Any:
    return collator.ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=12)


def _gaps(max_length: int = 12) -> Any:
    return collator.ILMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=max_length)


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
    return sample.predict(_gaps(max_length)(rows))


def _seq2seq_examples() -> list[Example]:
    return factories.seq2seq_examples([3, 6, 0, 1], [4, 1, 2, 0], n_letters=4)


def _fp64(values: Sequence[float]) -> Float64[Tensor, " n"]:
    return torch.tensor(values, dtype=torch.float64)


# What is drawn


def _law(
    net: Any, start: Sequence[int] = (), *, span: Sequence[int] = (0,), room: Sequence[int] = (3,), **options: Any
) -> Law:
    """The recursion's law without BOS; of texts without a prompt unless said otherwise."""
    ends = insertion_law(net, [BOS, *start], span=span, room=room, **{"free": True, **options})
    return {ids[1:]: p for ids, p in ends.items()}


def _of_table(net: ExactInserter) -> Law:
    return {tuple(ids): float(p) for ids, p in zip(net.texts(), net.table, strict=True) if p > 0}


def _table_law() -> Measured:
    net = exact()
    return answers_have_law(sampler(net).predict(_canvas(4)), _of_table(net))


def _text_law(options: dict[str, Any]) -> Measured:
    net = inconsistent()
    return answers_have_law(sampler(net, **options).predict(_canvas(3)), _law(net))


def _window_law() -> Measured:
    table = random_text_table(2, 4)
    table[: n_texts(2, 3)] = 0
    net = ExactInserter(table / table.sum(), token_ids=[A, B], vocab_size=VOCAB)
    return answers_have_law(_filled(sampler(net), 4, _template(*"????")), _of_table(net))


def _template_law() -> Measured:
    net = inconsistent(5)
    law = _law(net, [A, B], span=[0, -1, 1], room=[2, 0, 1], free=False)
    return answers_have_law(_filled(sampler(net), 5, _template("?", "?", A, B, "?")), law)


def _free_gap_law() -> Measured:
    net = inconsistent(4)
    laws = [
        _law(net, [A, B], span=span, room=room) for span, room in (([-1, 0, -1], [0, 2, 0]), ([0, -1, 0], [2, 0, 2]))
    ]
    return answers_have_law(_filled(sampler(net), 4, _template(A, "*", B), _template("*", A, B, "*")), *laws)


def _prompt_law() -> Measured:
    net = inconsistent(4)
    prompts: list[list[int]] = [[], [B], [B, A]]
    laws = [_law(net, ids, span=[-1] * len(ids) + [0], room=[0] * len(ids) + [2]) for ids in prompts]
    answers = [{ids[len(prompt) :]: p for ids, p in law.items()} for prompt, law in zip(prompts, laws, strict=True)]
    rows = factories.keyed([{"prompt_ids": prompts[i % 3]} for i in range(DRAWS)])
    return answers_have_law(sampler(net, max_new_tokens=2).predict(_prompts()(rows)), *answers)


def _eos_law() -> Measured:
    net = inconsistent(2, (EOS, A, B))
    laws = [_law(net, room=[2], never=[EOS]), _law(net, room=[2], free=False)]
    return answers_have_law(_filled(sampler(net), 2, _template("*"), _template("?", "?")), *laws)


def _pair_filters() -> Measured:
    net = inconsistent()

    def pairs(logits: Float[Tensor, "gaps vocab"]) -> Tensor:
        return filtered(logits.flatten(), top_p=0.7).reshape(logits.shape)

    return answers_have_law(sampler(net, top_p=0.7).predict(_canvas(3)), _law(net, pairs=pairs))


def _gap_filters(gaps: dict[str, Any], tokens: dict[str, Any]) -> Measured:
    net = inconsistent(token_ids=(A, B, C))

    def pairs(logits: Float[Tensor, "gaps vocab"]) -> Tensor:
        given_gap = torch.stack([filtered(row, **tokens) for row in logits])
        return filtered(logits.logsumexp(1), **gaps)[:, None] * given_gap

    options = {"draw": "two_stage", **tokens, **{f"gap_{name}": value for name, value in gaps.items()}}
    return answers_have_law(sampler(net, **options).predict(_canvas(3)), _law(net, pairs=pairs))


def _threshold() -> Measured:
    net = inconsistent()
    law = _law(net, stops=lambda p: float(p >= 0.7))
    return answers_have_law(sampler(net, stop_rule="threshold", stop_threshold=0.7).predict(_canvas(3)), law)


def _least_length() -> Measured:
    net, patient = inconsistent(), inconsistent()
    patient.stop_logits.data[: n_texts(2, 1)] = -1e4
    return answers_have_law(sampler(net, min_new_tokens=2).predict(_canvas(3)), _law(patient))


def _parallel(gap_distance: int) -> Measured:
    """The gaps are three tokens apart."""
    net, given = inconsistent(5), [A, B, A]
    if gap_distance > 3:
        law = _law(net, given, span=[0, -1, -1, 1], room=[1, 0, 0, 1], free=False)
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
    return answers_have_law(sampler(low).predict(_canvas(3)), _law(precise))


def _no_control_tokens() -> Measured:
    net = network()
    net.head.weight.data[: EOS + 1] = 2 * net.head.weight.data[C]  # more probable than c wherever c is
    collate: Any = collator.ILMUnconditionalCollator(tokenizer=TOKENIZER, max_length=8)
    return oracles.generates_no_control_tokens(sampler(net), collate, factories.unconditional_examples(200))


def _rows_stand_alone() -> Measured:
    return oracles.rows_stand_alone(sampler(network()), _prompts(), _seq2seq_examples() * 2)


def _given_stays() -> Measured:
    """Given tokens of templates whose gaps have a size, and the tokens that are generated there."""
    examples = factories.infill_examples([3, 8, 5, 12, 1] * 20, n_letters=4)
    predictions = sampler(network()).predict(_gaps()(examples))
    n = 0
    for row, ids, length in zip(examples, predictions["ids"].tolist(), predictions["lengths"].tolist(), strict=True):
        given = [(place, token) for place, token in enumerate(row["input_ids"]) if row["fixed"][place]]
        n += length != len(row["input_ids"]) or any(ids[place] != token for place, token in given)
    return oracles.none_of(n, "of 100 templates have their given tokens elsewhere")


# What a text costs


def _steps(net: Any, example: Example, counts_stop: bool) -> Steps:
    """Every step on every way to a row, by enumeration."""
    prompt = list(example.get("prompt_ids", []))
    ids = [BOS, *prompt, *list(example["target_ids"] if "target_ids" in example else example["input_ids"])]
    given = [True] * (1 + len(prompt)) + [bool(fixed) for fixed in example.get("fixed", [])]
    given += [False] * (len(ids) - len(given))
    n_spans, span = -1, []
    for before, here in zip([True, *given], given, strict=False):
        n_spans += before and not here
        span.append(-1 if here else n_spans)
    return insertion_steps(net, ids, span=span, never=[*CONTROL, *([EOS] if counts_stop else [])])


ROWS: dict[str, tuple[Callable[[], Any], bool, list[dict[str, Any]]]] = {
    "texts": (_texts, True, [{"input_ids": ids} for ids in ([A, B, C, D], [], [D, B, C], [C])]),
    "windows": (partial(_texts, "window"), False, [{"input_ids": ids} for ids in ([B, A, C, D], [C, A, D, B])]),
    "pairs": (
        _pairs,
        True,
        [{"prompt_ids": a, "target_ids": b} for a, b in (([A, B], [C, D, A]), ([], [B, A]), ([D, A, A], []))],
    ),
    "templates": (
        _templates,
        False,
        [{"input_ids": [A, C, B, D], "fixed": [0, 0, 1, 0]}, {"input_ids": [B, A, D, C], "fixed": [1, 0, 0, 0]}],
    ),
}
"""Of each role a collator, whether the end counts, and rows whose tokens differ: what is missing can be seen."""


def _orders_summed(net: InconsistentInserter) -> Float64[Tensor, " texts"]:
    """Of each text: the sum of the probabilities of its orders, as the likelihood says them; 64 draws meet all six."""
    texts = net.texts()
    rows = factories.keyed([{"input_ids": ids} for ids in texts for _ in range(64)])
    nll = sampler(net, likelihood="orders").log_likelihood(_texts()(rows), draws=1)["nll"].view(len(texts), 64)
    nll = nll.sort(1).values
    fresh = nn.functional.pad(nll.diff(dim=1) > 1e-9, (1, 0), value=True)
    n_orders = torch.tensor([math.factorial(len(ids)) for ids in texts])
    return ((-nll).exp() * fresh).sum(1) / n_orders


def _orders() -> Measured:
    net = inconsistent()
    law = _law(net, room=[4])
    return oracles.equal(_orders_summed(net), _fp64([law[tuple(ids)] for ids in net.texts()]))


def _mass() -> Measured:
    net = inconsistent()
    tail = sum(p for ids, p in _law(net, room=[4]).items() if len(ids) == 4)
    return oracles.has_mass(-torch.cat([_orders_summed(net), _fp64([tail])]).log())


def _bound() -> Measured:
    """Of one row of each role, 4000 draws: the greatest distance."""
    net, worst = inconsistent(5, LETTERS), Measured(0.0, 3.0, "")
    for collate, counts_stop, rows in ROWS.values():
        batch = collate()(factories.keyed(rows[:1] * 4000))
        nll = sampler(net).log_likelihood(batch, draws=1)["nll"]
        expected = insertion_bound(_steps(net, rows[0], counts_stop), counts_stop=counts_stop)
        measured = oracles.within_error(float(nll.mean()), expected, float(nll.std()) / 4000**0.5)
        worst = max(worst, measured, key=lambda m: m.error)
    return worst


def _two_orders() -> Measured:
    net, row = inconsistent(5, LETTERS), {"input_ids": [A, C, A]}
    steps = _steps(net, row, True)
    orders = order_log_probabilities(steps, counts_stop=True)
    of_two = -float((torch.logaddexp(orders[:, None], orders) - math.log(2)).mean()) - math.log(6)
    if not -float(orders.logsumexp(0)) <= of_two <= insertion_bound(steps, counts_stop=True):
        return Measured(math.inf, 0.0, "the enumerated bounds are out of order")
    nll = sampler(net, likelihood="orders").log_likelihood(_texts()(factories.keyed([row] * 4000)), draws=2)["nll"]
    return oracles.within_error(float(nll.mean()), of_two, float(nll.std()) / 4000**0.5)


def _of_exact(net: ExactInserter, copies: int, draws: int, **options: Any) -> Any:
    rows = factories.keyed([{"input_ids": ids} for ids in net.texts()] * copies)
    return sampler(net, **options).log_likelihood(_texts()(rows), draws=draws)


def _exact_orders() -> Measured:
    net = exact()
    return oracles.equal(_of_exact(net, 1, 2, likelihood="orders")["nll"], -net.table.log())


def _exact_bound() -> Measured:
    net = exact()
    result, p = _of_exact(net, 8, 16), net.table.repeat(8) / 8
    error = math.sqrt(float((p.square() * result["mc_variance"]).sum()))
    return oracles.within_error(float((p * result["nll"]).sum()), entropy(net.table), error)


def _costs_stand_alone(likelihood: str) -> Measured:
    pairs = factories.seq2seq_examples([3, 6, 0, 1, 2], [4, 5, 3, 0, 5], n_letters=4)
    return oracles.likelihoods_stand_alone(sampler(network(), likelihood=likelihood), _pairs(), pairs)


def _own_cost() -> Measured:
    net, batch = network(), _texts()(factories.lm_examples([3, 0, 4], n_letters=4))
    options: dict[str, Any] = {"temperature": 0.5, "top_k": 2, "stop_rule": "threshold", "tokens_per_step": 3}
    plain, other = (sampler(net, **given).log_likelihood(batch, draws=2)["nll"] for given in ({}, options))
    return oracles.equal(other, plain)


# What is learnt


def _missing(batch: Any, row: int) -> frozenset[int]:
    """Places of a row's missing tokens, all tokens of which are different ones behind the prompt."""
    n = batch["full_ids"].shape[1] if batch["full_mask"] is None else int(batch["full_mask"][row].sum())
    kept = batch["input_ids"][row].tolist()
    places = [place for place in range(n) if batch["span"][row, place] >= 0]
    first = min(places, default=n)
    return frozenset(place for place in places if int(batch["full_ids"][row, place]) not in kept[first:])


def _expected_costs(net: Any) -> list[tuple[float, Steps, bool]]:
    """Of one row of each role: the mean of the loss's estimate over numbers and sets of missing tokens, which all occur
    in 600 draws of noise; the steps on the way to the row; and whether its end counts."""
    costs = []
    for collate, counts_stop, rows in ROWS.values():
        batch, steps = collate()(factories.keyed(rows[:1] * 600)), _steps(net, rows[0], counts_stop)
        values = {_missing(batch, row): nll for row, nll in enumerate(_loss(net).loss_fn(batch)["nll"].tolist())}
        n = max(map(len, steps))
        mean = sum(values.get(missing, math.inf) / math.comb(n, len(missing)) for missing in steps) / (n + 1)
        costs.append((mean, steps, counts_stop))
    return costs


def _loss_bound() -> Measured:
    costs = _expected_costs(network())
    expected = [insertion_bound(steps, counts_stop=counts_stop) for _, steps, counts_stop in costs]
    return oracles.equal(_fp64([cost for cost, _, _ in costs]), _fp64(expected))


def _above() -> Measured:
    costs = _expected_costs(network())
    orders = [order_log_probabilities(steps, counts_stop=counts_stop) for _, steps, counts_stop in costs]
    least = torch.stack([-log_p.logsumexp(0) for log_p in orders])
    return oracles.not_below(_fp64([cost for cost, _, _ in costs]), least)


def _formula() -> Measured:
    """With stop_weight=2.5; where the stop head learns, its target is that nothing is missing."""
    net, ours, expected = network(), [], []
    for role, (collate, counts_stop, rows) in ROWS.items():
        examples = factories.keyed(rows * 8)
        steps = [_steps(net, row, counts_stop) for row in rows]
        batch, total, n_tokens = collate()(examples), 0.0, 0
        for i in range(len(examples)):
            missing, of_row = _missing(batch, i), steps[i % len(rows)]
            step, length = of_row[missing], max(map(len, of_row))
            cost = -sum(step.log_p.values()) / len(missing) if missing else 0.0
            if role != "templates":
                cost -= step.log_continue if missing else 2.5 * step.log_stop
            total, n_tokens = total + (length + 1) * cost, n_tokens + length + counts_stop
        ours.append(float(_loss(net, stop_weight=2.5).loss_fn(batch)["loss"].detach()))
        expected.append(total / n_tokens)
    return oracles.equal(_fp64(ours), _fp64(expected))


def _stationary() -> Measured:
    """Of texts of unequal length, over all that can be missing: were all weights equal, p / (L + 1) would be learnt."""
    net = exact(2, 3)
    expected = torch.zeros((), dtype=torch.float64)
    for p, ids in zip(net.table.tolist(), net.texts(), strict=True):
        full = torch.tensor([[BOS, *ids]])
        for n in range(len(ids) + 1):
            sets = list(combinations(range(1, len(ids) + 1), n))
            for missing in sets:
                dropped = torch.isin(torch.arange(len(ids) + 1), torch.tensor(missing, dtype=torch.int64))[None]
                out = _loss(net).loss_fn(_without(full, dropped))
                share = p / (len(ids) + 1) / len(sets)
                expected = expected + share * out["loss"] * out["loss_denominator"]
    gradients = torch.autograd.grad(expected, [net.insert_logits, net.stop_logits])
    error = max(float(gradient.abs().max()) for gradient in gradients)
    return Measured(error, 1e-9, "largest slope")


def _without(full: Tensor, dropped: Tensor) -> Any:
    """The batch of a text that misses some tokens."""
    span = dropping.span_numbers(torch.arange(full.shape[1])[None] > 0)
    kept = dropping.drop(full, None, span, dropped, PAD)
    n_tokens = torch.tensor([full.shape[1]])
    return {**vars(kept), "span": span, "counts_stop": True, "trains_stop": True, "n_tokens": n_tokens}


def _adds_up_texts() -> Measured:
    return oracles.adds_up(_loss(network()), _texts(), factories.lm_examples([3, 8, 0, 5], n_letters=4))


def _adds_up_pairs() -> Measured:
    return oracles.adds_up(_loss(network()), _pairs(), _seq2seq_examples())


def _gradient() -> Measured:
    batch = _texts()(factories.lm_examples([3, 8, 0, 5], n_letters=4))
    return oracles.has_gradient(_loss(network(), stop_weight=2.5), batch)


def _uniform() -> Measured:
    """All 32 sets of what can be missing of five tokens."""
    ids = [A, B, C, D, EOS]
    batch = _texts("window")(factories.keyed([{"input_ids": ids}] * DRAWS))
    missing = torch.zeros(DRAWS, VOCAB, dtype=torch.int64)
    missing[batch["rows"] // batch["input_ids"].shape[1], batch["tokens"]] = 1
    number = (missing[:, ids] * 2 ** torch.arange(5)).sum(1)
    sizes = [i.bit_count() for i in range(32)]
    shares = _fp64([1 / 6 / math.comb(5, n) for n in sizes])
    return oracles.has_law(torch.bincount(number, minlength=32), shares)


def _spread() -> Measured:
    """Independent numbers uniform on 0..8 give 1; the mean of 32 of them has a variance of (9^2 - 1) / 12 / 32."""
    numbers = _texts("window")(factories.lm_examples([8] * 32 * 200, n_letters=4))["n_dropped"].double()
    variance = float(numbers.reshape(200, 32).mean(1).var())
    return Measured(variance * 12 * 32 / 80, 0.2, "variance of a batch's mean number / that of independent ones")


# What the network reads


def _nothing_leaks() -> Measured:
    """Of texts, and of copies with another token in place of each one that is missing."""
    collate, examples = _texts("window"), factories.keyed([{"input_ids": [A, B, C, D]}] * 50)
    batch = collate(examples)
    others = [{**example, "input_ids": list(example["input_ids"])} for example in examples]
    for row, token in zip(
        (batch["rows"] // batch["input_ids"].shape[1]).tolist(), batch["tokens"].tolist(), strict=True
    ):
        others[row]["input_ids"][token - A] = EOS
    n = n_differences({"ids": batch["input_ids"]}, {"ids": collate(others)["input_ids"]})
    return oracles.none_of(n, f"inputs that change with {len(batch['tokens'])} missing tokens")


def _answers_unseen() -> Measured:
    pairs, infill = _seq2seq_examples(), factories.infill_examples([3, 8, 5], n_letters=4)
    n = n_differences(_prompts()(pairs), _prompts()([{**row, "target_ids": [D] * 3} for row in pairs]))
    flipped = [
        {**row, "input_ids": [i if fixed else 11 - i for i, fixed in zip(row["input_ids"], row["fixed"], strict=True)]}
        for row in infill
    ]
    return oracles.none_of(n + n_differences(_gaps()(infill), _gaps()(flipped)), "entries that change with the answer")


def _places() -> Measured:
    """Rows whose tokens are stored in another order, with ``positions`` that say where they belong."""
    net, ids = network(), torch.tensor(factories.letters([6] * 3, n_letters=4))
    order = torch.tensor([0, 3, 1, 5, 4, 2])
    states, stop_logit = net.read(ids)
    moved, stop_there = net.read(ids[:, order], positions=order.expand(3, -1))
    return oracles.equal(
        torch.cat([moved.flatten(), stop_there]), torch.cat([states[:, order].flatten(), stop_logit]), 1e-10
    )


def _padding() -> Measured:
    net, ids = network(), torch.tensor(factories.letters([6] * 3, n_letters=4))
    real = torch.tensor([[True] * 6 + [False] * 2] * 3)
    states, stop_logit = net.read(ids)
    padded, stop_there = net.read(torch.cat([ids, ids[:, :2]], 1), real)
    return oracles.equal(
        torch.cat([padded[:, :6].flatten(), stop_there]), torch.cat([states.flatten(), stop_logit]), 1e-10
    )


# Faults


def mutations() -> list[Mutation]:
    """Faults of the loss, the collators, the network and the predictor."""
    faults, loss_fn, parts = oracle_faults, "xlm_ilm.loss.ILMLoss", "xlm_ilm.collator"
    sample, pairs, rows = "xlm_ilm.predictor.sampler", "xlm_ilm.predictor.pairs", "xlm_ilm.predictor.rows.Rows"
    predict, cost = f"{sample}.ILMPredictor", "xlm_ilm.predictor.likelihood._Step.__init__"
    table: list[tuple[str, str, Callable[[Any], Any], str]] = [
        ("the loss is a mean over rows", f"{loss_fn}.loss_fn", faults.mean_over_rows, ADDS_UP),
        ("the loss is divided by missing tokens", f"{loss_fn}.loss_fn", faults.divided_by_missing, FORMULA),
        ("the stop head learns the opposite", f"{loss_fn}.loss_fn", faults.opposite_stop, STATIONARY),
        ("a row's weight is L instead of L + 1", "xlm_ilm.loss._length", faults.one_less, STATIONARY),
        ("log L! is left out of the loss's estimate", f"{loss_fn}._bound", faults.orders(0), LOSS_BOUND),
        ("log L! is subtracted twice", f"{loss_fn}._bound", faults.orders(2), ABOVE),
        ("going on is left out of the loss's estimate", f"{loss_fn}._bound", faults.without_continue, LOSS_BOUND),
        ("control tokens stay in the loss's softmax", "xlm_ilm.loss.suppressed_ids", faults.no_ids, FORMULA),
        ("the head gets no gradient from normalisers", "xlm_ilm.loss.linear_logsumexp", faults.frozen_head, GRADIENT),
        ("inputs hold missing tokens", f"{parts}.drop", faults.seen, NO_LEAK),
        ("missing tokens belong to the next gap", f"{parts}.drop", faults.next_gap, FORMULA),
        ("a prompt's gaps are open", "xlm_ilm.dropping.gap_spans", faults.all_open, FORMULA),
        ("tokens at the end go missing more often", f"{parts}.uniforms", faults.leaning, UNIFORM),
        ("few tokens go missing more often than many", f"{parts}.low_discrepancy_times", faults.squared, UNIFORM),
        ("numbers of missing tokens are independent", f"{parts}.low_discrepancy_times", faults.independent, SPREAD),
        (
            "the prompt ends with the answer",
            f"{parts}.ILMSeq2SeqPredictionCollator.__call__",
            faults.with_answer,
            ANSWERS_UNSEEN,
        ),
        ("positions are ignored", "xlm_ilm.model.ILMTransformer.read", faults.by_column, PLACES),
        ("padding is seen", "xlm_ilm.model.visible_to", faults.all_seen, PADDING),
        ("the stop head is not asked", f"{predict}._stops", faults.never, TABLE_LAW),
        ("texts stop with the probability to go on", f"{predict}._stops", faults.opposite, RECURSION),
        ("a threshold is drawn, too", f"{predict}._stops", faults.always_drawn, THRESHOLD),
        ("a text may stop one token too soon", f"{predict}._stops", faults.one_token_early, LEAST_LENGTH),
        ("the last token is the most probable one", f"{predict}._insert", faults.greedy_at_last, WINDOWS),
        ("gap_distance is ignored", f"{predict}._insert", faults.close, NEAR),
        ("filters of two stages act on pairs", f"{predict}._pairs", faults.on_pairs, GAP_FILTERS),
        ("filters of pairs act on tokens", f"{predict}._pairs", faults.on_tokens, PAIR_FILTERS),
        ("a gap weighs as its best token", f"{pairs}.Vocabulary.log_sums", faults.best_token, TABLE_LAW),
        ("EOS is inserted where the length is free", f"{pairs}.Vocabulary.logits", faults.with_eos, EOS_LAW),
        ("probabilities stand where logits belong", f"{pairs}.draw", faults.probabilities, RECURSION),
        ("gap and token share a random number", f"{sample}.TOKEN_STREAM", lambda _: GAP_STREAM, RECURSION),
        ("noise is keyed by the place in the batch", f"{sample}.uniforms", faults.keyed_by_batch, ROWS_ALONE),
        ("control tokens can be inserted", f"{sample}.suppressed_ids", faults.no_ids, NO_CONTROL_TOKENS),
        ("tokens stand before their gap", f"{rows}.insert", faults.before_the_gap, TEMPLATES),
        ("tokens are inserted into closed gaps", f"{rows}.gaps", faults.anywhere, GIVEN_STAYS),
        ("top-p drops the pair that crosses p", "xlm.sampling.keep_top_p", faults.less_than_p, PAIR_FILTERS),
        ("top-k keeps one token less", "xlm.sampling.keep_top_k", faults.one_token_less, TOP_K),
        ("log L! is left out of the bound", f"{sample}.insertion_bound", faults.of_one_order, BOUND),
        ("log L! is left out of the orders' sum", f"{sample}.order_bound", faults.of_one_order, ORDERS),
        ("a bound's noise is keyed by the batch", "xlm.likelihood.uniforms", faults.keyed_by_batch, BOUND_ALONE),
        ("orders are keyed by the batch", "xlm_ilm.predictor.likelihood.uniforms", faults.keyed_by_batch, ORDERS_ALONE),
        ("going on is left out of the likelihood", cost, faults.certain("log_continue"), BOUND),
        ("stopping is left out of the likelihood", cost, faults.certain("log_stop"), MASS),
        ("orders are averaged after the logarithm", f"{sample}.order_bound", faults.mean_of_logs, TIGHTER),
        ("the likelihood is of the filtered law", f"{predict}.log_likelihood", faults.heated, OWN_COST),
    ]
    return [Mutation(fault, {path: change}, caught_by) for fault, path, change, caught_by in table]
