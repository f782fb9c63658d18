"""Deliberate faults of ILM: where each goes, and which oracle notices it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xlm.testing import faults as common
from xlm.testing.oracles import Mutation

from xlm_ilm.oracle_case import likelihood, objective, reading, samplers
from xlm_ilm.oracle_case.faults import prediction, training
from xlm_ilm.predictor.sampler import GAP_STREAM


def mutations() -> list[Mutation]:
    """Faults of the loss, the collators, the network and the predictor."""
    loss_fn, parts = "xlm_ilm.loss.ILMLoss", "xlm_ilm.collator"
    sample, pairs, rows = "xlm_ilm.predictor.sampler", "xlm_ilm.predictor.pairs", "xlm_ilm.predictor.rows.Rows"
    predict, cost = f"{sample}.ILMPredictor", "xlm_ilm.predictor.likelihood._Step.__init__"
    table: list[tuple[str, str, Callable[[Any], Any], str]] = [
        ("the loss is a mean over rows", f"{loss_fn}.loss_fn", training.mean_over_rows, objective.ADDS_UP),
        ("the loss is divided by missing tokens", f"{loss_fn}.loss_fn", training.divided_by_missing, objective.FORMULA),
        ("the stop head learns the opposite", f"{loss_fn}.loss_fn", training.opposite_stop, objective.STATIONARY),
        ("a row's weight is L instead of L + 1", "xlm_ilm.loss._length", training.one_less, objective.STATIONARY),
        ("log L! is left out of the loss's estimate", f"{loss_fn}._bound", training.orders(0), objective.LOSS_BOUND),
        ("log L! is subtracted twice", f"{loss_fn}._bound", training.orders(2), objective.ABOVE),
        (
            "going on is left out of the loss's estimate",
            f"{loss_fn}._bound",
            training.without_continue,
            objective.LOSS_BOUND,
        ),
        (
            "control tokens stay in the loss's softmax",
            "xlm_ilm.loss.suppressed_ids",
            common.no_ids,
            objective.FORMULA,
        ),
        (
            "the head gets no gradient from normalisers",
            "xlm_ilm.loss.linear_logsumexp",
            common.frozen_head,
            objective.GRADIENT,
        ),
        ("inputs hold missing tokens", f"{parts}.drop", training.seen, reading.NO_LEAK),
        ("missing tokens belong to the next gap", f"{parts}.drop", training.next_gap, objective.FORMULA),
        ("a prompt's gaps are open", "xlm_ilm.dropping.gap_spans", training.all_open, objective.FORMULA),
        ("tokens at the end go missing more often", f"{parts}.uniforms", training.leaning, objective.UNIFORM),
        (
            "few tokens go missing more often than many",
            f"{parts}.low_discrepancy_times",
            training.squared,
            objective.UNIFORM,
        ),
        (
            "numbers of missing tokens are independent",
            f"{parts}.low_discrepancy_times",
            common.independent,
            objective.SPREAD,
        ),
        (
            "the prompt ends with the answer",
            f"{parts}.ILMSeq2SeqPredictionCollator.__call__",
            training.with_answer,
            reading.ANSWERS_UNSEEN,
        ),
        ("positions are ignored", "xlm_ilm.model.ILMTransformer.read", prediction.by_column, reading.PLACES),
        ("padding is seen", "xlm_ilm.model.visible_to", prediction.all_seen, reading.PADDING),
        ("the stop head is not asked", f"{predict}._stops", prediction.never, samplers.TABLE_LAW),
        ("texts stop with the probability to go on", f"{predict}._stops", prediction.opposite, samplers.RECURSION),
        ("a threshold is drawn, too", f"{predict}._stops", prediction.always_drawn, samplers.THRESHOLD),
        ("a text may stop one token too soon", f"{predict}._stops", prediction.one_token_early, samplers.LEAST_LENGTH),
        ("the last token is the most probable one", f"{predict}._insert", prediction.greedy_at_last, samplers.WINDOWS),
        ("gap_distance is ignored", f"{predict}._insert", prediction.close, samplers.NEAR),
        ("filters of two stages act on pairs", f"{predict}._pairs", prediction.on_pairs, samplers.GAP_FILTERS),
        ("filters of pairs act on tokens", f"{predict}._pairs", prediction.on_tokens, samplers.PAIR_FILTERS),
        ("a gap weighs as its best token", f"{pairs}.Vocabulary.log_sums", prediction.best_token, samplers.TABLE_LAW),
        (
            "EOS is inserted where the length is free",
            f"{pairs}.Vocabulary.logits",
            prediction.with_eos,
            samplers.EOS_LAW,
        ),
        ("probabilities stand where logits belong", f"{pairs}.draw", prediction.probabilities, samplers.RECURSION),
        ("gap and token share a random number", f"{sample}.TOKEN_STREAM", lambda _: GAP_STREAM, samplers.RECURSION),
        (
            "noise is keyed by the place in the batch",
            f"{sample}.uniforms",
            common.keyed_by_batch,
            samplers.ROWS_ALONE,
        ),
        ("control tokens can be inserted", f"{sample}.suppressed_ids", common.no_ids, samplers.NO_CONTROL_TOKENS),
        ("tokens stand before their gap", f"{rows}.insert", prediction.before_the_gap, samplers.TEMPLATES),
        ("tokens are inserted into closed gaps", f"{rows}.gaps", prediction.anywhere, samplers.GIVEN_STAYS),
        (
            "top-p drops the pair that crosses p",
            "xlm.sampling.keep_top_p",
            common.less_than_p,
            samplers.PAIR_FILTERS,
        ),
        ("top-k keeps one token less", "xlm.sampling.keep_top_k", common.one_token_less, samplers.TOP_K),
        ("log L! is left out of the bound", f"{sample}.insertion_bound", prediction.of_one_order, likelihood.BOUND),
        ("log L! is left out of the orders' sum", f"{sample}.order_bound", prediction.of_one_order, likelihood.ORDERS),
        (
            "a bound's noise is keyed by the batch",
            "xlm.likelihood.uniforms",
            common.keyed_by_batch,
            likelihood.BOUND_ALONE,
        ),
        (
            "orders are keyed by the batch",
            "xlm_ilm.predictor.likelihood.uniforms",
            common.keyed_by_batch,
            likelihood.ORDERS_ALONE,
        ),
        ("going on is left out of the likelihood", cost, prediction.certain("log_continue"), likelihood.BOUND),
        ("stopping is left out of the likelihood", cost, prediction.certain("log_stop"), likelihood.MASS),
        (
            "orders are averaged after the logarithm",
            f"{sample}.order_bound",
            prediction.mean_of_logs,
            likelihood.TIGHTER,
        ),
        ("the likelihood is of the filtered law", f"{predict}.log_likelihood", prediction.heated, likelihood.OWN_COST),
    ]
    return [Mutation(fault, {path: change}, caught_by) for fault, path, change, caught_by in table]
