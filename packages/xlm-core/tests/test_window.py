import pytest
import torch
from xlm.window import Window, extras


def test_a_token_count_that_bf16_cannot_hold_still_weighs_exactly():
    loss = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    value = Window().add({"loss": loss, "loss_denominator": torch.tensor(257)}, {}, parts=2)
    assert float(value) == 257.0


def test_sums_are_weighted_by_the_denominators_in_fp64():
    window = Window()
    for loss, tokens, extra in ((1.0, 2**24, 3.0), (4.0, 1, 6.0)):
        losses = {"loss": torch.tensor(loss), "loss_denominator": torch.tensor(tokens), "extra": torch.tensor(extra)}
        window.add({**losses, "text": "not a number", "many": torch.zeros(2)}, {}, parts=2)
    assert window.names == ["extra"]
    assert window.sums(stop=True).tolist() == [2**24 + 4, 2**24 + 1, 2**24 + 1, 1.0, 3 * 2**24 + 6]


def test_tokens_are_those_of_the_batch_whatever_the_loss_was_divided_by():
    window = Window()
    losses = {"loss": torch.tensor(1.0), "loss_denominator": torch.tensor(2)}
    for tokens in ([3, 4], [5, 6]):
        window.add(losses, {"n_tokens": torch.tensor(tokens)}, parts=2)
    assert window.sums(stop=False).tolist() == [4, 4, 18, 0]


@pytest.mark.parametrize(("nll", "expected"), [(None, [5, 7]), ([1.0, float("inf")], [7]), ([1.0, 2.0], [5, 7])])
def test_suspects_are_the_rows_that_are_not_finite_as_far_as_that_is_known(nll, expected):
    window = Window()
    window.add({"loss": torch.tensor(1.0), "nll": torch.ones(1)}, {"index": torch.tensor([3])}, parts=2)
    losses = {"loss": torch.tensor(float("nan"))} | ({} if nll is None else {"nll": torch.tensor(nll)})
    window.add(losses, {"index": torch.tensor([5, 7])}, parts=2)
    assert not window.loss_is_finite()
    assert window.suspects() == expected


def test_what_is_said_of_each_row_is_not_logged_even_of_a_batch_of_one():
    rows = {name: torch.ones(1) for name in ("nll", "n_tokens", "masked_nll", "n_masked")}
    assert set(extras({"loss": torch.ones(()), "half": torch.ones(()), **rows})) == {"half"}
