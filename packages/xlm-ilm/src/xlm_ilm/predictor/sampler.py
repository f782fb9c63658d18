"""Sampling by insertion (ILM; Patel et al., 2025, arXiv:2505.05755)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from xlm.errors import UserError
from xlm.noise import Stream, uniforms
from xlm.protocols import Predictions, Predictor, SequenceLikelihood, Tokenizer
from xlm.sampling import TokenFilter, suppressed_ids
from xlm.stopping import stop_strings
from xlm.trace import Trace

from xlm_ilm.predictor.answers import answer_rows, read_answers
from xlm_ilm.predictor.likelihood import insertion_bound, order_bound
from xlm_ilm.predictor.pairs import ByGap, Draw, GapFilter, Jointly, Vocabulary
from xlm_ilm.predictor.rows import Rows
from xlm_ilm.types import ILMBatch, ILMModel, ILMPredictionBatch

STOP_STREAM, GAP_STREAM, TOKEN_STREAM = (Stream.SAMPLE << 32) + 2, Stream.SAMPLE << 32, (Stream.SAMPLE << 32) + 1

StopRule = Literal["bernoulli", "threshold"]
Likelihood = Literal["bound", "orders"]


class ILMPredictor(Predictor[ILMPredictionBatch, Predictions]):
    """Inserts tokens until the stop head says that nothing is missing, or until a template has no room left.

    With the options left as they are samples follow the model's own p; ``law`` says which law the options give.
    ``log_likelihood`` is of the model's p, whatever the options. EOS is never inserted where the length is free. Every
    row takes its random numbers from its own ``noise_key`` and the number of its insertions.

    Args:
        model: The network.
        tokenizer: Decodes, and says which tokens are never inserted.
        max_new_tokens: Most tokens inserted where the length is free; null is ``max_target_length``, or all that the
            model can read. A template's gaps of fixed size are filled whatever this is.
        max_target_length: Most tokens of a target; the data module knows it.
        min_new_tokens: A row of free length does not stop before so many insertions.
        stop_rule: ``bernoulli`` stops with the probability that the stop head gives; ``threshold`` when it is at least
            ``stop_threshold``.
        stop_threshold: In (0, 1]; for ``threshold`` only.
        draw: ``joint`` draws gap and token from one softmax over all pairs, and filters act on pairs; ``two_stage``
            draws the gap first, then the token given the gap, each with filters of its own. Without filters both are
            the same law; with them ``joint`` is slower, for top-p sorts all pairs.
        temperature: Divides the logits of pairs (of tokens given the gap: ``two_stage``); 0 takes the most probable.
        top_k: Pairs (tokens) to keep; null keeps all.
        top_p: Probability mass of pairs (tokens) to keep, in (0, 1].
        min_p: Least probability of a pair (token) to keep, relative to the most probable one, in [0, 1].
        gap_temperature: Divides the gaps' log-probabilities, for ``two_stage`` as the next three; 0 takes the most
            probable gap.
        gap_top_k: Gaps to keep; null keeps all.
        gap_top_p: Probability mass of gaps to keep, in (0, 1].
        gap_min_p: Least probability of a gap to keep, relative to the most probable one, in [0, 1].
        stop: A string, or several, that end an answer of free length: its text before it, ``ids`` after it. Nothing is
            saved, since what stands before it may be inserted last.
        tokens_per_step: Tokens inserted a network call, independently given what stood there before; above 1 the
            law is approximate.
        gap_distance: Gaps filled in one call lie at least so many tokens apart; 1 is any two gaps.
        likelihood: ``bound`` averages over how many tokens are missing, one network call a draw; ``orders`` takes whole
            orders, a network call a token and draw, and is tighter.
        trace: Whether to record each insertion; its position is the token's place in the row, BOS at 0, at that moment.
    """

    noise_schedule = None

    def __init__(
        self,
        *,
        model: ILMModel,
        tokenizer: Tokenizer,
        max_new_tokens: int | None = None,
        max_target_length: int | None = None,
        min_new_tokens: int = 0,
        stop_rule: str = "bernoulli",
        stop_threshold: float = 0.5,
        draw: str = "joint",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        gap_temperature: float = 1.0,
        gap_top_k: int | None = None,
        gap_top_p: float = 1.0,
        gap_min_p: float = 0.0,
        stop: str | Sequence[str] = (),
        tokens_per_step: int = 1,
        gap_distance: int = 4,
        likelihood: str = "bound",
        trace: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.trace = model, tokenizer, trace
        self.max_new_tokens = max_target_length if max_new_tokens is None else max_new_tokens
        self.min_new_tokens = min_new_tokens
        self.stop_rule, self.stop_threshold = stop_rule, stop_threshold
        self.draw = draw
        self.filter = TokenFilter(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        self.gap_filter = GapFilter(gap_temperature, gap_top_k, gap_top_p, gap_min_p)
        self.stop = stop_strings(stop)
        self.tokens_per_step, self.gap_distance = tokens_per_step, gap_distance
        self.likelihood = likelihood
        self.vocabulary = Vocabulary(model, suppressed_ids(tokenizer), tokenizer.eos_token_id)
        self._check()

    def _check(self) -> None:
        for name, kind in (("stop_rule", StopRule), ("draw", Draw), ("likelihood", Likelihood)):
            allowed = get_args(kind)
            self._require(getattr(self, name) in allowed, name, f"must be {' or '.join(allowed)}", f"use {allowed[0]}")
        for name, fix in (
            ("max_new_tokens", "use null for as many as the model can read"),
            ("tokens_per_step", "use 1 for the model's law"),
            ("gap_distance", "use 1 to fill any gaps together"),
        ):
            value = getattr(self, name)
            self._require(value is None or value >= 1, name, "must be 1 or more", fix)
        most = self.max_new_tokens or self.model.max_length
        what = f"must lie in [0, max_new_tokens = {most}]"
        self._require(0 <= self.min_new_tokens <= most, "min_new_tokens", what, "use 0 to let a text end at once")
        self._require(0 < self.stop_threshold <= 1, "stop_threshold", "must lie in (0, 1]", "use 0.5")
        self._require(
            self.stop_rule == "threshold" or self.stop_threshold == 0.5,
            "stop_threshold",
            "is not read by stop_rule=bernoulli",
            "use stop_rule=threshold, or leave it out",
        )
        self._require(
            self.draw == "two_stage" or self.gap_filter == GapFilter(),
            "draw",
            "has no gap of its own to filter",
            "use draw=two_stage, or leave the gap_ options out",
        )

    def _require(self, holds: bool, name: str, what: str, fix: str) -> None:
        if not holds:
            raise UserError(what, where=f"predictor.{name}", value=getattr(self, name), fix=fix)

    @property
    def law(self) -> str:
        """Which distribution ``predict`` draws from, in words."""
        kind = {"joint": "pairs", "two_stage": "gaps and tokens"}[self.draw]
        changes = {
            f"filtered {kind}": self.filter != TokenFilter() or self.gap_filter != GapFilter(),
            f"at least {self.min_new_tokens} insertions": self.min_new_tokens > 0,
            f"stops at the first p_stop >= {self.stop_threshold}": self.stop_rule == "threshold",
            f"{self.tokens_per_step} insertions a call, drawn independently": self.tokens_per_step > 1,
        }
        changed = [name for name, holds in changes.items() if holds]
        if not changed:
            return "exact: the model's p, whose texts end at max_new_tokens at the latest"
        return f"its own, not the model's p: {'; '.join(changed)}"

    @torch.no_grad()
    def predict(self, batch: ILMPredictionBatch) -> Predictions:
        """Complete every row; finished rows leave the batch."""
        rows = Rows(batch, max_length=self.model.max_length, max_new_tokens=self.max_new_tokens)
        chance = _Uniforms(batch["noise_key"], int(rows.budget.max()))
        n_calls = torch.zeros_like(rows.lengths)
        trace = Trace() if self.trace else None
        going, step = rows.unfinished(torch.arange(len(n_calls), device=n_calls.device)), 0
        while len(going):
            states, stop_logit = rows.read(self.model, going)
            n_calls[going] += 1
            goes_on = ~self._stops(rows, going, stop_logit, chance)
            going = going[goes_on]
            if len(going):
                self._insert(rows, going, states[goes_on], chance, trace, step)
            going, step = rows.unfinished(going), step + 1
        return read_answers(self.tokenizer, batch, rows, n_calls, stop=self.stop, trace=trace)

    def _stops(
        self, rows: Rows, going: Int[Tensor, " rows"], stop_logit: Float[Tensor, " rows"], chance: _Uniforms
    ) -> Bool[Tensor, " rows"]:
        p = stop_logit.double().sigmoid()
        inserted = rows.inserted[going]
        stops = chance.stop[going, inserted] < p if self.stop_rule == "bernoulli" else p >= self.stop_threshold
        return stops & rows.free[going] & (inserted >= self.min_new_tokens)

    def _insert(
        self,
        rows: Rows,
        going: Int[Tensor, " rows"],
        states: Float[Tensor, "rows seq d_model"],
        chance: _Uniforms,
        trace: Trace | None,
        step: int,
    ) -> None:
        """One token or more in each of the rows ``going``, all from the same states."""
        seq, before = states.shape[1], rows.positions[going, : states.shape[1]]
        far = rows.gaps(going, seq)  # none of the gaps that this step opens: the states do not know them
        pairs = self._pairs(states, rows.free[going], far)
        for _ in range(self.tokens_per_step):
            gaps = rows.gaps(going, seq) & far
            i = gaps.any(1).nonzero().squeeze(1)
            if not len(i):
                break
            row = going[i]
            gap, tokens, probabilities = pairs.draw(i, gaps[i], chance.pair[row, rows.inserted[row]])
            places = rows.insert(row, gap, tokens)
            far[i] &= (before[i] - before[i].gather(1, gap[:, None])).abs() >= self.gap_distance
            if trace is not None:
                trace.record(step, "insert", row, places, tokens, probabilities)

    def _pairs(self, states: Tensor, free: Tensor, gaps: Tensor) -> ByGap | Jointly:
        if self.draw == "joint" and self.filter != TokenFilter():
            return Jointly(self.vocabulary, states, free, pair_filter=self.filter)
        filters = {"token_filter": self.filter, "gap_filter": self.gap_filter}
        return ByGap(self.vocabulary, states, free, gaps, **filters)

    def to_dict(self, batch: ILMPredictionBatch, preds: Predictions) -> list[dict[str, Any]]:
        """JSON-ready rows; ``prompt`` is the prompt's text, or the template with mask tokens in its gaps."""
        return answer_rows(self.tokenizer, batch, preds, stop=self.stop)

    @torch.no_grad()
    def log_likelihood(self, batch: ILMBatch, *, draws: int = 1) -> SequenceLikelihood:
        """Bound on -log p of the texts, of the targets given their prompts, or of what fills the templates."""
        bound = insertion_bound if self.likelihood == "bound" else order_bound
        return bound(self.vocabulary, batch, draws=draws)


class _Uniforms:
    """Random numbers of each row: one to stop and two to insert, for each number of insertions so far."""

    def __init__(self, noise_key: Int[Tensor, " batch"], most: int) -> None:
        stop, gap, token = (
            uniforms(noise_key, most, stream=stream, dtype=torch.float64)
            for stream in (STOP_STREAM, GAP_STREAM, TOKEN_STREAM)
        )
        self.stop, self.pair = stop, torch.stack([gap, token], dim=-1)
