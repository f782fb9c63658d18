from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from xlm.evaluation import LossEvaluation


def evaluated(event_space: str, *, n_tokens: list[int], n_bytes: list[int] | None) -> dict[str, Any]:
    manager = SimpleNamespace(
        event_space=event_space,
        n_bytes=lambda index: None if n_bytes is None else torch.tensor(n_bytes)[index],
        source=SimpleNamespace(optimum=lambda: 0.5),
    )
    nll = torch.ones(len(n_tokens), dtype=torch.float64)
    losses = {"loss": nll.mean(), "nll": nll, "n_tokens": torch.tensor(n_tokens)}
    loss: Any = SimpleNamespace(loss_fn=lambda batch: losses)
    evaluation = LossEvaluation("test.text", manager, loss=loss, predictor=None, draws=None)
    evaluation.update({"index": torch.arange(len(n_tokens))})
    return evaluation.compute()


@pytest.mark.parametrize(
    ("event_space", "n_tokens", "n_bytes", "shown"),
    [
        ("window", [4, 4], [4, 4], True),
        ("open", [4, 3], [3, 2], True),  # the end of a text is a token without a byte
        ("window", [4, 4], [9, 4], False),
        ("open", [4, 3], [4, 3], False),
        ("window", [4, 4], None, False),
    ],
)
def test_the_optimum_of_a_language_is_shown_where_tokens_are_its_characters(event_space, n_tokens, n_bytes, shown):
    results = evaluated(event_space, n_tokens=n_tokens, n_bytes=n_bytes)
    assert results.get("optimum_nats_per_token") == (0.5 if shown else None)
