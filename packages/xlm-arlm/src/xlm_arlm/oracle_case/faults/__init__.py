"""Deliberate faults of ARLM: where each goes, and which oracle notices it."""

from __future__ import annotations

from xlm.testing import faults as common
from xlm.testing.oracles import Mutation

from xlm_arlm.oracle_case import likelihood, objective, reading, samplers
from xlm_arlm.oracle_case.faults import prediction, training


def mutations() -> list[Mutation]:
    """Faults of the loss, the collators, the network and the predictor."""
    loss_fn, batch = "xlm_arlm.loss.ARLMLoss.loss_fn", "xlm_arlm.collator.ARLMCollator._batch"
    parts, sample, top_p = "xlm_arlm.collator", "xlm_arlm.predictor", samplers.options_law(samplers.TOP_P)
    logits = f"{sample}.ARLMPredictor._next_logits"
    return [
        Mutation("the loss is a mean over rows", {loss_fn: training.mean_over_rows}, objective.ADDS_UP),
        Mutation("the loss is divided by padding, too", {loss_fn: training.divided_by_columns}, objective.FORMULA),
        Mutation(
            "the head gets no gradient",
            {"xlm_arlm.loss.linear_cross_entropy": common.frozen_head},
            objective.GRADIENT,
        ),
        Mutation(
            "control tokens stay in the loss's softmax",
            {"xlm_arlm.loss.suppressed_ids": common.no_ids},
            objective.FORMULA,
        ),
        Mutation("inputs are not shifted", {batch: training.unshifted}, reading.NO_LEAK),
        Mutation("targets are shifted by two", {batch: training.shifted_by_two}, likelihood.TABLE_COST),
        Mutation("EOS is left out of the sum", {batch: training.without_last}, likelihood.TEXTS_MASS),
        Mutation(
            "prompts are in the loss",
            {f"{parts}.ARLMSeq2SeqCollator.__call__": training.with_prompt},
            objective.FORMULA,
        ),
        Mutation("prompts see their padding", {f"{parts}._placement": training.no_mask}, objective.FORMULA),
        Mutation(
            "packed documents see one another",
            {f"{parts}.ARLMCollator.__call__": training.one_document},
            objective.PACKED,
        ),
        Mutation(
            "the prompt holds the answer",
            {f"{parts}._left_padded_prompts": training.with_answer},
            reading.ANSWERS_UNSEEN,
        ),
        Mutation(
            "the causal mask is missing", {"xlm_arlm.model.Block.forward": prediction.not_causal}, reading.NO_LEAK
        ),
        Mutation(
            "positions begin anew behind the cache",
            {"xlm_arlm.model.rotary_table": prediction.from_zero},
            samplers.CACHED_STATES,
        ),
        Mutation(
            "the position behind the cache is one too far",
            {f"{sample}._Running.read": prediction.one_too_far},
            samplers.CACHED_LOGITS,
        ),
        Mutation(
            "of the cache the first rows stay, whoever has ended",
            {"xlm.nn.attention.KVCache.keep": prediction.first_rows},
            samplers.CACHED_IDS,
        ),
        Mutation(
            "control tokens can be generated", {f"{sample}.suppressed_ids": common.no_ids}, samplers.NO_CONTROL_TOKENS
        ),
        Mutation("probabilities stand where logits belong", {logits: prediction.probabilities}, samplers.TABLE_LAW),
        Mutation("the last letter is the most probable one", {logits: prediction.greedy_at_last}, samplers.TABLE_LAW),
        Mutation(
            "one random number serves all tokens of a row",
            {f"{sample}.uniforms": prediction.one_number},
            samplers.TABLE_LAW,
        ),
        Mutation(
            "noise is keyed by the place in the batch",
            {f"{sample}.uniforms": common.keyed_by_batch},
            samplers.ROWS_ALONE,
        ),
        Mutation("top-p drops the token that crosses p", {"xlm.sampling.keep_top_p": common.less_than_p}, top_p),
        Mutation(
            "top-k counts tokens that are never drawn",
            {"xlm.sampling.keep_top_k": prediction.counting_control},
            samplers.NEUTRAL_FILTERS,
        ),
        Mutation(
            "top-k keeps one token less",
            {"xlm.sampling.keep_top_k": common.one_token_less},
            samplers.options_law(samplers.TOP_K),
        ),
        Mutation(
            "min-p comes before the temperature",
            {f"{sample}.TokenFilter": prediction.min_p_first},
            samplers.options_law(samplers.HEATED),
        ),
        Mutation("EOS is held back for one token less", {logits: prediction.one_step_ahead}, samplers.LEAST_LENGTH),
        Mutation(
            "stop strings are looked for in the last token",
            {f"{sample}.ARLMPredictor._stopped": prediction.last_token_only},
            samplers.STOPPED,
        ),
        Mutation(
            "the repetition penalty multiplies all logits",
            {f"{sample}.penalise_repetition": prediction.multiplied},
            samplers.REPEATED,
        ),
        Mutation(
            "the likelihood is of the filtered law",
            {f"{sample}.ARLMPredictor.log_likelihood": prediction.heated_likelihood},
            likelihood.TABLE_COST,
        ),
    ]
