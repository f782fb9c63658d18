from __future__ import annotations

from typing import Any

import pytest
import torch
from xlm.errors import UserError
from xlm.testing.contracts import ModelContract, PackingContract
from xlm_mdlm.model import MDLMTransformer


def network(**options: Any) -> MDLMTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 12, "max_length": 16, "d_model": 32, "n_layers": 2, "n_heads": 2}
    return MDLMTransformer(**{**sizes, **options}).eval()


def conditioned() -> MDLMTransformer:
    """A conditioned network whose gates are open, as after training."""
    model = network(condition_on_mask_rate=True)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


class TestMDLMTransformer(PackingContract):
    def model(self):
        return network()


class TestTiedMDLMTransformer(ModelContract):
    def model(self):
        return network(tie_embeddings=True)


class ConditionedAtHalf(MDLMTransformer):
    """Conditioned, and always told the same mask rate, so that it can be called like any other network."""

    def hidden(self, input_ids, attention_mask=None, **options):
        options["mask_rate"] = torch.full((len(input_ids),), 0.5)
        return super().hidden(input_ids, attention_mask, **options)


class TestConditionedMDLMTransformer(PackingContract):
    def model(self):
        model = conditioned()
        model.__class__ = ConditionedAtHalf
        return model


def test_every_position_sees_every_other():
    embedded: list[torch.Tensor] = []
    model = network()
    model.embed.register_forward_hook(lambda *_: embedded.append(_[2].requires_grad_()) or embedded[-1])
    states = model.hidden(torch.tensor([[4, 5, 6]]))
    for i in range(3):
        (gradient,) = torch.autograd.grad(states[0, i, 0], embedded[-1], retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).all()


def test_a_conditioned_network_answers_differently_at_another_mask_rate():
    ids = torch.tensor([[4, 5, 6]])
    model = conditioned()
    low, high = (model(ids, mask_rate=torch.tensor([u])) for u in (0.1, 0.9))
    assert not torch.allclose(low, high)


def test_rows_of_a_batch_may_have_different_mask_rates():
    ids, u = torch.tensor([[4, 5, 6], [4, 5, 6]]), torch.tensor([0.1, 0.9])
    model = conditioned()
    alone = [model(ids[i : i + 1], mask_rate=u[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(model(ids, mask_rate=u), torch.cat(alone))


def test_a_network_without_condition_does_not_look_at_the_mask_rate():
    ids = torch.tensor([[4, 5, 6]])
    model = network()
    assert torch.equal(model(ids), model(ids, mask_rate=torch.tensor([0.3])))


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
    tied, untied = network(tie_embeddings=True), network()
    assert tied.head.weight is tied.embed.weight
    assert untied.head.weight is not untied.embed.weight


def test_dropout_acts_in_training_only():
    model, ids = network(dropout=0.5), torch.tensor([[4, 5, 6]])
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_a_row_longer_than_the_network_was_made_for_is_refused():
    with pytest.raises(UserError, match="17 positions, 16 fit"):
        network()(torch.full((1, 17), 4))


def test_places_look_alike_while_everything_is_hidden_and_not_once_a_token_is_visible():
    ids = torch.ones(1, 10, dtype=torch.int64)
    with torch.no_grad():
        hidden = network()(ids)
        visible = network()(ids.index_fill(1, torch.tensor([4]), 5))
    torch.testing.assert_close(hidden, hidden[:, :1].expand_as(hidden))
    assert (visible[:, 0] - visible[:, 8]).abs().max() > 1e-4
