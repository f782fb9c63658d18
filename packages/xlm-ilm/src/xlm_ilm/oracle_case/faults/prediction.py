"""Deliberate faults of the network and the predictor: from the right function to a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from xlm.sampling import TokenFilter

from xlm_ilm.predictor.pairs import ByGap, Jointly

# The network


def by_column(read: Any) -> Any:
    """Places are those in memory."""
    return lambda self, input_ids, attention_mask=None, *, positions=None: read(self, input_ids, attention_mask)


def all_seen(_: Any) -> Any:
    """No attention mask."""
    return lambda *args, **options: None


# The predictor


def never(stops: Any) -> Any:
    """Rows end where there is no room left."""
    return lambda *args: stops(*args) & False


def opposite(stops: Any) -> Any:
    """Rows stop with the probability to go on."""
    return lambda self, rows, going, stop_logit, chance: stops(self, rows, going, -stop_logit, chance)


def always_drawn(stops: Any) -> Any:
    """A threshold is taken for a probability."""

    def wrong(self: Any, *args: Any) -> Any:
        rule, self.stop_rule = self.stop_rule, "bernoulli"
        stopped = stops(self, *args)
        self.stop_rule = rule
        return stopped

    return wrong


def one_token_early(stops: Any) -> Any:
    """A row may stop when one token is still to come."""

    def wrong(self: Any, *args: Any) -> Any:
        least, self.min_new_tokens = self.min_new_tokens, max(0, self.min_new_tokens - 1)
        stopped = stops(self, *args)
        self.min_new_tokens = least
        return stopped

    return wrong


def greedy_at_last(insert: Any) -> Any:
    """No draw where one token is left to insert."""

    def wrong(self: Any, rows: Any, going: Tensor, *args: Any) -> None:
        drawn = self.filter
        if (rows.budget[going] == 1).all():
            self.filter = TokenFilter(temperature=0.0)
        insert(self, rows, going, *args)
        self.filter = drawn

    return wrong


def close(insert: Any) -> Any:
    """Gaps of one call may lie next to each other."""

    def wrong(self: Any, *args: Any) -> None:
        distance, self.gap_distance = self.gap_distance, 1
        insert(self, *args)
        self.gap_distance = distance

    return wrong


def on_pairs(_: Any) -> Any:
    """The tokens' filter acts on pairs, and gaps have none."""
    return lambda self, states, free, gaps: Jointly(self.vocabulary, states, free, pair_filter=self.filter)


def on_tokens(_: Any) -> Any:
    """The pairs' filter acts on the tokens of each gap."""
    return lambda self, states, free, gaps: ByGap(
        self.vocabulary, states, free, gaps, token_filter=self.filter, gap_filter=TokenFilter()
    )


def best_token(_: Any) -> Any:
    """A gap weighs as much as its most probable token."""
    return lambda vocabulary, states, free: vocabulary.logits(states, free).double().amax(1)


def with_eos(logits: Any) -> Any:
    """Every row is taken for one of given length."""
    return lambda vocabulary, states, free: logits(vocabulary, states, torch.zeros_like(free))


def probabilities(draw: Any) -> Any:
    """A softmax too many."""
    return lambda logits, u: draw(logits.softmax(-1), u)


def before_the_gap(insert: Any) -> Any:
    """A new token stands before the token of its gap, except after BOS."""

    def wrong(self: Any, rows: Tensor, gaps: Tensor, tokens: Tensor) -> Tensor:
        at: Tensor = insert(self, rows, gaps, tokens)
        there, new = rows[gaps > 0], self.lengths[rows[gaps > 0]] - 1
        old = gaps[gaps > 0]
        self.positions[there, new], self.positions[there, old] = (
            self.positions[there, old],
            self.positions[there, new].clone(),
        )
        return at

    return wrong


def anywhere(_: Any) -> Any:
    """Every gap takes tokens while there is a budget."""

    def wrong(self: Any, rows: Tensor, seq: int) -> Any:
        return (torch.arange(seq) < self.lengths[rows, None]) & (self.budget[rows, None] > 0)

    return wrong


# The likelihood


def of_one_order(bound: Any) -> Any:
    """Without log L!."""

    def wrong(vocabulary: Any, batch: Any, *, draws: int) -> Any:
        result = bound(vocabulary, batch, draws=draws)
        return {**result, "nll": result["nll"] + torch.lgamma((batch["span"] >= 0).sum(1).double() + 1)}

    return wrong


def mean_of_logs(order_bound: Any) -> Any:
    """The mean of the orders' logarithms instead of the logarithm of their mean."""

    def wrong(vocabulary: Any, batch: Any, *, draws: int) -> Any:
        keys = [batch["noise_key"] + draw for draw in range(draws)]
        results = [order_bound(vocabulary, {**batch, "noise_key": key}, draws=1) for key in keys]
        return {**results[0], "nll": torch.stack([result["nll"] for result in results]).mean(0)}

    return wrong


def certain(name: str) -> Callable[[Any], Any]:
    """A decision of the stop head costs nothing."""

    def fault(init: Any) -> Any:
        def wrong(self: Any, *args: Any) -> None:
            init(self, *args)
            setattr(self, name, torch.zeros_like(getattr(self, name)))

        return wrong

    return fault


def heated(log_likelihood: Any) -> Any:
    """The likelihood, too, divides logits by the temperature."""

    def wrong(self: Any, batch: Any, **options: Any) -> Any:
        weight = self.model.head.weight.data
        self.model.head.weight.data = weight / self.filter.temperature
        result = log_likelihood(self, batch, **options)
        self.model.head.weight.data = weight
        return result

    return wrong
