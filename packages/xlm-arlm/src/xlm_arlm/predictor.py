"""Sampling left to right with cached keys and values, and the exact likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from xlm.answers import json_rows
from xlm.errors import UserError
from xlm.nn.attention import KVCache
from xlm.nn.linear_cross_entropy import linear_cross_entropy
from xlm.noise import Stream, uniforms
from xlm.protocols import Predictions, Predictor, SequenceLikelihood, Tokenizer
from xlm.sampling import TokenFilter, draw, penalise_repetition, suppress, suppressed_ids
from xlm.stopping import stop_strings
from xlm.trace import Trace

from xlm_arlm.types import ARLMBatch, ARLMModel, ARLMPromptBatch, special_id


class ARLMPredictor(Predictor[ARLMPromptBatch, Predictions]):
    """Draws one token after another, each from the model's distribution given all before it.

    With the options left as they are the samples follow the model's own p(text, EOS | prompt). ``log_likelihood`` is of
    that p, whatever the options. A row ends with EOS, with a stop string, after ``max_new_tokens``, or when the model
    can read no more; it then leaves the batch.

    Args:
        model: The network.
        tokenizer: Decodes, and says which tokens are never generated.
        max_new_tokens: Most tokens drawn, EOS included; null is ``max_target_length``, or all that the model can read.
        max_target_length: Most tokens of a target, EOS included; the data module knows it.
        min_new_tokens: EOS is not drawn before so many tokens.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Draw among so many tokens; null is all.
        top_p: Draw among the most probable tokens that together reach this probability, in (0, 1].
        min_p: Draw among the tokens that are at least this probable, relative to the most probable one, in [0, 1].
        repetition_penalty: Above 1, makes the tokens of the prompt and the answer so far less likely (CTRL: 1.2).
        stop: A string, or several, that end the answer; the text ends before it, ``ids`` after it.
        trace: Whether to record each token drawn; its position is its place in the row, BOS at 0.
    """

    noise_schedule = None

    def __init__(
        self,
        *,
        model: ARLMModel,
        tokenizer: Tokenizer,
        max_new_tokens: int | None = None,
        max_target_length: int | None = None,
        min_new_tokens: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        trace: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.trace = model, tokenizer, trace
        self.suppressed = suppressed_ids(tokenizer)
        self.eos, self.pad = special_id(tokenizer, "eos"), special_id(tokenizer, "pad")
        self.filter = TokenFilter(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        self.max_new_tokens = max_target_length or model.max_length if max_new_tokens is None else max_new_tokens
        self.min_new_tokens, self.repetition_penalty = min_new_tokens, repetition_penalty
        self.stop = stop_strings(stop)
        self._check()

    def _check(self) -> None:
        if self.max_new_tokens < 1:
            fix = "use null for as many as the model can read"
            raise UserError("must be 1 or more", where="predictor.max_new_tokens", value=self.max_new_tokens, fix=fix)
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            what, fix = f"must lie in [0, max_new_tokens = {self.max_new_tokens}]", "use 0 to let a text end at once"
            raise UserError(what, where="predictor.min_new_tokens", value=self.min_new_tokens, fix=fix)
        if not self.repetition_penalty > 0:
            fix = "use 1.0 for none, 1.2 as CTRL does"
            raise UserError(
                "must be above 0", where="predictor.repetition_penalty", value=self.repetition_penalty, fix=fix
            )

    @torch.no_grad()
    def predict(self, batch: ARLMPromptBatch) -> Predictions:
        """Continue every prompt; a row's draws depend on its own ``noise_key`` only."""
        running, states = self._prefill(batch)
        ids = states.new_zeros((len(states), int(running.budget.max())), dtype=torch.int64)
        n_drawn = torch.zeros_like(running.budget)
        trace = Trace()
        for step in range(ids.shape[1]):
            logits = self._next_logits(states, running, step)
            tokens = draw(logits, running.uniforms[:, step])
            ids[running.rows, step] = tokens
            n_drawn[running.rows] = step + 1
            if self.trace:
                probability = logits.softmax(-1).gather(1, tokens[:, None])[:, 0]
                trace.record(step, "append", running.rows, running.position[:, 0], tokens, probability)
            goes_on = (tokens != self.eos) & (running.budget > step + 1) & ~self._stopped(ids[running.rows, : step + 1])
            if not goes_on.all():
                running.keep(goes_on)
                tokens = tokens[goes_on]
            if not len(tokens):
                break
            states = running.read(self.model, tokens)
        return self._predictions(ids, n_drawn, trace)

    def _prefill(self, batch: ARLMPromptBatch) -> tuple[_Running, Float[Tensor, "batch d_model"]]:
        """Read the prompts; the states say what follows them."""
        input_ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["positions"]
        n_rows, seq = input_ids.shape
        read = torch.full((n_rows,), seq, device=input_ids.device) if mask is None else mask.sum(1)
        budget = (self.model.max_length + 1 - read).clamp(1, self.max_new_tokens)  # the last token is not read
        longest = int(budget.max())
        running = _Running(
            rows=torch.arange(n_rows, device=input_ids.device),
            ids=input_ids,
            attention_mask=mask,
            position=read[:, None],
            budget=budget,
            uniforms=uniforms(batch["noise_key"], longest, stream=Stream.SAMPLE, dtype=torch.float64),
            cache=self.model.new_cache(n_rows, seq + longest - 1),
        )
        return running, self.model.hidden(input_ids, mask, positions=positions, cache=running.cache)[:, -1]

    def _next_logits(
        self, states: Float[Tensor, "rows d_model"], running: _Running, step: int
    ) -> Float[Tensor, "rows vocab"]:
        """What the next token is drawn from."""
        logits = suppress(self.model.head(states), self.suppressed.to(states.device))
        if self.repetition_penalty != 1:
            seen = running.ids != self.eos  # it ends a text once; GPT-2, whose BOS it is, finds it in every prompt
            logits = penalise_repetition(logits, running.ids, self.repetition_penalty, seen)
        if step < self.min_new_tokens:
            logits = suppress(logits, torch.tensor([self.eos], device=logits.device))
        return self.filter(logits)

    def _stopped(self, ids: Int[Tensor, "rows drawn"]) -> Bool[Tensor, " rows"]:
        """Whether the last token completed a stop string; a token stands for a byte or more, so a tail decides."""
        if not self.stop:
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        tail = ids[:, -(4 + max(len(stop.encode()) for stop in self.stop)) :].tolist()
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in tail]
        return torch.tensor([any(stop in text for stop in self.stop) for text in texts], device=ids.device)

    def _predictions(self, ids: Int[Tensor, "batch seq"], n_drawn: Int[Tensor, " batch"], trace: Trace) -> Predictions:
        last = ids.gather(1, n_drawn[:, None] - 1)[:, 0]
        lengths = torch.where(last == self.eos, n_drawn - 1, n_drawn)
        ids = ids[:, : int(lengths.max())]
        valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        predictions: Predictions = {
            "ids": torch.where(valid, ids, self.pad),
            "lengths": lengths,
            "n_calls": n_drawn,
        }
        if self.trace:
            predictions["trace"] = trace.events()
        return predictions

    def to_dict(self, batch: ARLMPromptBatch, preds: Predictions) -> list[dict[str, Any]]:
        """JSON-ready rows; ``prediction`` is the text up to the first stop string."""
        valid = batch["attention_mask"]
        valid = torch.ones_like(batch["input_ids"], dtype=torch.bool) if valid is None else valid
        starts = [ids[there].tolist() for ids, there in zip(batch["input_ids"], valid, strict=True)]
        prompts = [self.tokenizer.decode(start, skip_special_tokens=True) for start in starts]
        stop = [self.stop] * len(starts)
        return json_rows(self.tokenizer, batch["index"], preds, prompts=prompts, starts=starts, stop=stop)

    @torch.no_grad()
    def log_likelihood(self, batch: ARLMBatch, *, draws: int = 1) -> SequenceLikelihood:
        """-log p of the predicted tokens of each row, by the chain rule, in one call; nothing is drawn."""
        states = self.model.hidden(
            batch["input_ids"], batch["attention_mask"], positions=batch["positions"], segments=batch["segments"]
        )
        at = batch["predicted"]
        weight, targets = self.model.head.weight, batch["target_ids"][at]
        suppressed = self.suppressed.to(states.device)
        _, costs = linear_cross_entropy(states[at], weight, targets, suppressed=suppressed)
        nll = torch.zeros(at.shape, dtype=torch.float64, device=at.device).masked_scatter(at, costs.double()).sum(1)
        return {"nll": nll, "n_tokens": batch["n_tokens"], "kind": "exact", "estimator": "chain_rule", "n_calls": 1}


@dataclass
class _Running:
    """The rows that have not ended."""

    rows: Int[Tensor, " rows"]
    """Their places in the batch."""
    ids: Int[Tensor, "rows read"]
    attention_mask: Bool[Tensor, "rows read"] | None
    position: Int[Tensor, "rows 1"]
    """Of the next token."""
    budget: Int[Tensor, " rows"]
    """Most tokens to draw."""
    uniforms: Float[Tensor, "rows drawn"]
    cache: KVCache

    def keep(self, chosen: Bool[Tensor, " rows"]) -> None:
        """Let the other rows leave."""
        self.rows, self.ids, self.position = self.rows[chosen], self.ids[chosen], self.position[chosen]
        self.budget, self.uniforms = self.budget[chosen], self.uniforms[chosen]
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[chosen]
        self.cache.keep(chosen)

    def read(self, model: ARLMModel, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_model"]:
        """States after one more token in every row."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        if self.attention_mask is not None:
            self.attention_mask = F.pad(self.attention_mask, (0, 1), value=True)
        states = model.hidden(tokens[:, None], self.attention_mask, positions=self.position, cache=self.cache)
        self.position = self.position + 1
        return states[:, -1]
