"""What must hold of ARLM, and faults that would break it: run by ``xlm verify`` and by the tests.

A table of the probabilities of all strings of four letters out of four is the model whose law is known beforehand; a
small transformer with random weights is one whose texts have any length, and whose cache and masks can be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from xlm.noise import Stream, uniforms
from xlm.protocols import Example
from xlm.sampling import draw
from xlm.testing import factories, oracles
from xlm.testing.answers import Law, answers_have_law, causal_law, filtered, n_differences
from xlm.testing.oracles import DRAWS, Measured, Mutation, Oracle, OracleCase
from xlm.testing.toy import ExactCausal, digits, random_table

from xlm_arlm import collator, loss, model, oracle_faults, predictor

TOKENIZER = factories.tiny_tokenizer(n_letters=4)
CONTROL, BOS, EOS, LETTERS, VOCAB, LENGTH = [0, 1, 2], 2, 3, [4, 5, 6, 7], 8, 4
A, B, C, D = LETTERS
FEW, MOST = 6, 4
"""Ids of a network whose letters are a and b, and most tokens of its texts: 31 texts in all."""

TABLE_LAW = "samples of a table have its law"
PROMPT_LAW = "after prompts of unequal length samples have the table's conditional laws"
TEXT_LAW = "a transformer's texts are drawn as often as their likelihoods say"
NEUTRAL_FILTERS = "options that keep everything change no draw"
NO_CONTROL_TOKENS = "nothing is generated that the likelihood leaves out"
ROWS_ALONE = "a prediction does not depend on its batch"
CACHED_IDS = "cached decoding draws the ids of recomputation"
CACHED_LOGITS = "cached decoding gives the logits of recomputation, in the predictor"
CACHED_STATES = "cached decoding gives the logits of recomputation, in the network"
WINDOWS_MASS = "the probabilities of all windows sum to 1"
TEXTS_MASS = "the probabilities of all texts and of going on sum to 1"
TABLE_COST = "the likelihood of a text is -log of its table's p, whatever the sampler's options"
ANSWER_COST = "the likelihood of an answer is conditional on its prompt"
COSTS_ALONE = "a likelihood does not depend on its batch"
FORMULA = "the loss is the chain rule of every row alone"
ADDS_UP = "the loss adds up over texts of unequal length"
GRADIENT = "the gradient of the loss is that of finite differences"
PACKED = "packed documents cost what they cost alone"
NO_LEAK = "no logit depends on the token that it predicts, or on one behind it"
ANSWERS_UNSEEN = "inputs to continue do not depend on the answer"

HEATED: dict[str, Any] = {"temperature": 0.7, "min_p": 0.2}
TOP_P: dict[str, Any] = {"top_p": 0.8}
TOP_K: dict[str, Any] = {"top_k": 2}
LEAST_LENGTH = "with min_new_tokens=2 EOS is not drawn before"
STOPPED = "with stop=ab a text ends there"
REPEATED = "with repetition_penalty=1.5 tokens of the prompt and the answer are less likely"


def case() -> OracleCase:
    """The oracles and mutations of ARLM."""
    measures: dict[str, Callable[[], Measured]] = {
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
        WINDOWS_MASS: _windows_mass,
        TEXTS_MASS: _texts_mass,
        TABLE_COST: _table_cost,
        ANSWER_COST: _answer_cost,
        COSTS_ALONE: _costs_stand_alone,
        FORMULA: _formula,
        ADDS_UP: _adds_up_texts,
        "the loss adds up over prompts and targets": _adds_up_pairs,
        GRADIENT: _gradient,
        PACKED: _packed,
        "padding changes no logit": _padding,
        NO_LEAK: _nothing_leaks,
        ANSWERS_UNSEEN: _answers_unseen,
    }
    return OracleCase([Oracle(name, measure) for name, measure in measures.items()], mutations())


def options_law(options: dict[str, Any]) -> str:
    """Name of the oracle of some token filters."""
    return f"with {' '.join(f'{name}={value}' for name, value in options.items())} samples have the filtered law"


# Parts


def network(vocab_size: int = VOCAB, max_length: int = 16) -> Any:
    """Small, in fp64, far from uniform and from certain."""
    torch.manual_seed(0)
    net = model.ARLMTransformer(vocab_size=vocab_size, max_length=max_length, d_model=16, n_layers=2, n_heads=2)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    net.double().eval()
    return net


def table(kind: type[ExactCausal] = ExactCausal) -> ExactCausal:
    """Knows what follows every prefix."""
    return kind(random_table(), token_ids=LETTERS, vocab_size=VOCAB, bos_id=BOS, eos_id=EOS)


def sampler(net: Any, **options: Any) -> predictor.ARLMPredictor:
    """The predictor, for texts as long as the table's and EOS."""
    return predictor.ARLMPredictor(model=net, tokenizer=TOKENIZER, **{"max_new_tokens": LENGTH + 1, **options})


def _loss(net: Any) -> loss.ARLMLoss:
    return loss.ARLMLoss(model=net, tokenizer=TOKENIZER)


TEXTS: Any = collator.ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="open")
WINDOWS: Any = collator.ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="window")
PAIRS: Any = collator.ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)
PAIRS_ON_PROMPT: Any = collator.ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16, loss_on_prompt=True)
PROMPTS: Any = collator.ARLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=16)
NOTHING: Any = collator.ARLMUnconditionalCollator(tokenizer=TOKENIZER)


def _texts(rows: Sequence[Sequence[int]]) -> Any:
    return TEXTS(factories.keyed([{"input_ids": list(ids)} for ids in rows]))


def _windows(rows: Sequence[Sequence[int]], **columns: list[int]) -> Any:
    return WINDOWS(factories.keyed([{"input_ids": list(ids), **columns} for ids in rows]))


def _prompts(*prompts: list[int]) -> Any:
    """As many prompts as draws, in turn."""
    return PROMPTS(factories.keyed([{"prompt_ids": prompts[i % len(prompts)]} for i in range(DRAWS)]))


def _nothing() -> Any:
    return NOTHING(factories.unconditional_examples(DRAWS))


def _pairs() -> list[Example]:
    return factories.seq2seq_examples([3, 0, 6, 1], [2, 5, 0, 3], n_letters=4)


# What is drawn


_by_recursion = partial(causal_law, eos_id=EOS, never=CONTROL, most=MOST)


def _of_table(net: ExactCausal, given: Sequence[int] = ()) -> Law:
    """Answers after a prompt by the table itself."""
    law = {tuple(ids): float(p) for ids, p in zip(net.all_strings().tolist(), net.table.flatten(), strict=True)}
    law = {ids[len(given) :]: p for ids, p in law.items() if ids[: len(given)] == tuple(given)}
    return {ids: p / sum(law.values()) for ids, p in law.items()}


def _table_law() -> Measured:
    net = table()
    return answers_have_law(sampler(net).predict(_nothing()), _of_table(net))


def _prompt_law() -> Measured:
    net = table()
    prompts: list[list[int]] = [[], [A], [B, C]]
    return answers_have_law(sampler(net).predict(_prompts(*prompts)), *(_of_table(net, ids) for ids in prompts))


def _text_law() -> Measured:
    net = network(FEW)
    ended, going_on = _every_text(MOST)
    nll = [sampler(net).log_likelihood(batch)["nll"] for batch in (_texts(ended), _windows(going_on))]
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
    return oracles.rows_stand_alone(sampler(network()), PROMPTS, _pairs() + _pairs())


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


# What a text costs


def _every_text(length: int) -> tuple[list[list[int]], list[list[int]]]:
    """All texts of a and b of less than ``length`` letters, and all that have as many."""
    strings = [torch.tensor([A, B])[digits(2, n)].tolist() for n in range(1, length + 1)]
    return [[], *(ids for shorter in strings[:-1] for ids in shorter)], strings[-1]


def _windows_mass() -> Measured:
    rows = torch.tensor([EOS, A, B])[digits(3, LENGTH)].tolist()
    return oracles.has_mass(sampler(network(FEW)).log_likelihood(_windows(rows))["nll"])


def _texts_mass() -> Measured:
    net = network(FEW)
    ended, going_on = _every_text(MOST)
    nll = [sampler(net).log_likelihood(batch)["nll"] for batch in (_texts(ended), _windows(going_on))]
    return oracles.has_mass(torch.cat(nll))


def _table_cost() -> Measured:
    net = table()
    batch = _texts(net.all_strings().tolist())
    options: dict[str, Any] = {"temperature": 0.5, "top_k": 2, "repetition_penalty": 2.0, "min_new_tokens": 3}
    costs = [sampler(net, **options).log_likelihood(batch)["nll"], _loss(net).loss_fn(batch)["nll"]]
    return oracles.equal(torch.stack(costs), -net.table.flatten().log().expand(2, -1))


def _answer_cost() -> Measured:
    net = table()
    rows = [{"prompt_ids": ids[:n], "target_ids": ids[n:]} for ids in net.all_strings().tolist() for n in (1, 3)]
    laws = {prompt: _of_table(net, prompt) for prompt in {tuple(row["prompt_ids"]) for row in rows}}
    expected = [-math.log(laws[tuple(row["prompt_ids"])][tuple(row["target_ids"])]) for row in rows]
    nll = sampler(net).log_likelihood(PAIRS(factories.keyed(rows)))["nll"]
    return oracles.equal(nll, torch.tensor(expected, dtype=torch.float64))


def _costs_stand_alone() -> Measured:
    return oracles.likelihoods_stand_alone(sampler(network()), PAIRS, _pairs())


# What is learnt


def _costs(net: Any, prompt: Sequence[int], target: Sequence[int]) -> Float[Tensor, " tokens"]:
    """-log p of each token of a row and of EOS, without padding."""
    ids = torch.tensor([BOS, *prompt, *target, EOS])
    logits = net(ids[None, :-1])[0]
    logits[:, CONTROL] = -math.inf
    return F.cross_entropy(logits, ids[1:], reduction="none")


def _formula() -> Measured:
    net = network()
    texts = factories.lm_examples([3, 7, 0, 5], n_letters=4)
    rows = {
        TEXTS: [(text, 0, _costs(net, [], text["input_ids"])) for text in texts],
        PAIRS: [
            (pair, len(pair["prompt_ids"]), _costs(net, pair["prompt_ids"], pair["target_ids"])) for pair in _pairs()
        ],
    }
    rows[PAIRS_ON_PROMPT] = rows[PAIRS]
    ours, expected = [], []
    for collate, of_rows in rows.items():
        out = _loss(net).loss_fn(collate([example for example, _, _ in of_rows]))
        answers = [costs[given:] for _, given, costs in of_rows]
        trained = [costs for _, _, costs in of_rows] if collate is PAIRS_ON_PROMPT else answers
        ours += [out["loss"][None], out["nll"]]
        expected += [torch.cat(trained).mean()[None], torch.stack([costs.sum() for costs in answers])]
    return oracles.equal(torch.cat(ours), torch.cat(expected))


def _adds_up_texts() -> Measured:
    return oracles.adds_up(_loss(network()), TEXTS, factories.lm_examples([3, 7, 0, 5], n_letters=4))


def _adds_up_pairs() -> Measured:
    return oracles.adds_up(_loss(network()), PAIRS_ON_PROMPT, _pairs())


def _gradient() -> Measured:
    return oracles.has_gradient(_loss(network()), PAIRS_ON_PROMPT(_pairs()))


def _packed() -> Measured:
    net = network()
    first, second = [A, B, C, EOS], [D, A, EOS]
    packed = _loss(net).loss_fn(_windows([first + second], segments=[0] * 4 + [1] * 3))
    alone = _loss(net).loss_fn(_texts([first[:-1], second[:-1]]))
    left, right = (torch.stack([out["nll"].sum(), out["loss"]]) for out in (packed, alone))
    return oracles.equal(left, right)


# What the network reads


def _padding() -> Measured:
    net = network()
    ids = torch.tensor(factories.letters([6] * 3, n_letters=4))
    real = torch.tensor([[False] * 2 + [True] * 6] * len(ids))
    positions = (real.cumsum(1) - 1).clamp_min(0)
    padded = net(torch.cat([ids[:, :2], ids], 1), real, positions=positions)
    return oracles.equal(padded[:, 2:], net(ids))


def _nothing_leaks() -> Measured:
    """Of a text and its copy that differs from its fourth letter on."""
    net = network()
    texts = factories.letters([8, 6], n_letters=4)
    others = [[*ids[:3], *(A + D - token for token in ids[3:])] for ids in texts]
    before, after = (net(batch["input_ids"])[:, :4] for batch in (_texts(texts), _texts(others)))
    return oracles.equal(before, after)


def _answers_unseen() -> Measured:
    pairs = _pairs()
    n = n_differences(PROMPTS(pairs), PROMPTS([{**pair, "target_ids": [D] * 7} for pair in pairs]))
    return oracles.none_of(n, "entries that change with the answer")


# Faults


def mutations() -> list[Mutation]:
    """Faults of the loss, the collators, the network and the predictor."""
    faults, loss_fn, batch = oracle_faults, "xlm_arlm.loss.ARLMLoss.loss_fn", "xlm_arlm.collator.ARLMCollator._batch"
    parts, sample, top_p = "xlm_arlm.collator", "xlm_arlm.predictor", options_law(TOP_P)
    logits = f"{sample}.ARLMPredictor._next_logits"
    return [
        Mutation("the loss is a mean over rows", {loss_fn: faults.mean_over_rows}, ADDS_UP),
        Mutation("the loss is divided by padding, too", {loss_fn: faults.divided_by_columns}, FORMULA),
        Mutation("the head gets no gradient", {"xlm_arlm.loss.linear_cross_entropy": faults.frozen_head}, GRADIENT),
        Mutation("control tokens stay in the loss's softmax", {"xlm_arlm.loss.suppressed_ids": faults.no_ids}, FORMULA),
        Mutation("inputs are not shifted", {batch: faults.unshifted}, NO_LEAK),
        Mutation("targets are shifted by two", {batch: faults.shifted_by_two}, TABLE_COST),
        Mutation("EOS is left out of the sum", {batch: faults.without_last}, TEXTS_MASS),
        Mutation("prompts are in the loss", {f"{parts}.ARLMSeq2SeqCollator.__call__": faults.with_prompt}, FORMULA),
        Mutation("prompts see their padding", {f"{parts}._placement": faults.no_mask}, FORMULA),
        Mutation("packed documents see one another", {f"{parts}.ARLMCollator.__call__": faults.one_document}, PACKED),
        Mutation("the prompt holds the answer", {f"{parts}._left_padded_prompts": faults.with_answer}, ANSWERS_UNSEEN),
        Mutation("the causal mask is missing", {"xlm_arlm.model.Block.forward": faults.not_causal}, NO_LEAK),
        Mutation(
            "positions begin anew behind the cache",
            {"xlm_arlm.model.rotary_table": faults.from_zero},
            CACHED_STATES,
        ),
        Mutation(
            "the position behind the cache is one too far",
            {f"{sample}._Running.read": faults.one_too_far},
            CACHED_LOGITS,
        ),
        Mutation(
            "of the cache the first rows stay, whoever has ended",
            {"xlm.nn.attention.KVCache.keep": faults.first_rows},
            CACHED_IDS,
        ),
        Mutation("control tokens can be generated", {f"{sample}.suppressed_ids": faults.no_ids}, NO_CONTROL_TOKENS),
        Mutation("probabilities stand where logits belong", {logits: faults.probabilities}, TABLE_LAW),
        Mutation("the last letter is the most probable one", {logits: faults.greedy_at_last}, TABLE_LAW),
        Mutation("one random number serves all tokens of a row", {f"{sample}.uniforms": faults.one_number}, TABLE_LAW),
        Mutation("noise is keyed by the place in the batch", {f"{sample}.uniforms": faults.keyed_by_batch}, ROWS_ALONE),
        Mutation("top-p drops the token that crosses p", {"xlm.sampling.keep_top_p": faults.less_than_p}, top_p),
        Mutation(
            "top-k counts tokens that are never drawn",
            {"xlm.sampling.keep_top_k": faults.counting_control},
            NEUTRAL_FILTERS,
        ),
        Mutation("top-k keeps one token less", {"xlm.sampling.keep_top_k": faults.one_less}, options_law(TOP_K)),
        Mutation(
            "min-p comes before the temperature", {f"{sample}.TokenFilter": faults.min_p_first}, options_law(HEATED)
        ),
        Mutation("EOS is held back for one token less", {logits: faults.one_step_ahead}, LEAST_LENGTH),
        Mutation(
            "stop strings are looked for in the last token",
            {f"{sample}.ARLMPredictor._stopped": faults.last_token_only},
            STOPPED,
        ),
        Mutation(
            "the repetition penalty multiplies all logits",
            {f"{sample}.penalise_repetition": faults.multiplied},
            REPEATED,
        ),
        Mutation(
            "the likelihood is of the filtered law",
            {f"{sample}.ARLMPredictor.log_likelihood": faults.heated_likelihood},
            TABLE_COST,
        ),
    ]
