from __future__ import annotations

from typing import Any

import pytest
import torch
from xlm.errors import UserError
from xlm.testing.contracts import ModelContract, PackingContract
from xlm_mlm.model import MLMTransformer


def network(**options: Any) -> MLMTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 12, "max_length": 16, "d_model": 32, "n_layers": 2, "n_heads": 2}
    return MLMTransformer(**{**sizes, **options}).eval()


class TestMLMTransformer(PackingContract):
    def model(self):
        return network()


class TestTiedMLMTransformer(ModelContract):
    def model(self):
        return network(tie_embeddings=True)


def test_every_position_sees_every_other():
    embedded: list[torch.Tensor] = []
    model = network()
    model.embed.register_forward_hook(lambda *_: embedded.append(_[2].requires_grad_()) or embedded[-1])
    states = model.hidden(torch.tensor([[4, 5, 6]]))
    for i in range(3):
        (gradient,) = torch.autograd.grad(states[0, i, 0], embedded[-1], retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).all()


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
