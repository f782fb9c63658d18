from __future__ import annotations

from typing import Any

import pytest
import torch
from xlm.errors import UserError
from xlm.testing.contracts import ModelContract
from xlm_ilm.model import ILMTransformer


def network(**options: Any) -> ILMTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 12, "max_length": 16, "d_model": 32, "n_layers": 2, "n_heads": 2}
    return ILMTransformer(**{**sizes, **options}).eval()


class TestILMTransformer(ModelContract):
    def model(self):
        return network()

    def test_every_parameter_is_used(self):
        model = network()
        states, stop_logit = model.read(self._ids(model))
        (model.head(states).sum() + stop_logit.sum()).backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


class TestTiedILMTransformer(TestILMTransformer):
    def model(self):
        return network(tie_embeddings=True)


IDS = torch.tensor([[2, 4, 5, 6, 7], [2, 8, 9, 4, 0]])
REAL = torch.tensor([[True] * 5, [True] * 4 + [False]])


def test_every_gap_and_the_stop_logit_see_every_token():
    embedded: list[torch.Tensor] = []
    model = network()
    model.embed.register_forward_hook(lambda *_: embedded.append(_[2].requires_grad_()) or embedded[-1])
    states, stop_logit = model.read(IDS[:1])
    for output in (*states[0, :, 0], stop_logit[0]):
        (gradient,) = torch.autograd.grad(output, embedded[-1], retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).all()


def test_the_stop_logit_depends_neither_on_padding_nor_on_the_batch():
    model = network()
    alone = torch.cat([model.read(IDS[:1])[1], model.read(IDS[1:, :4])[1]])
    torch.testing.assert_close(model.read(IDS, REAL)[1], alone)


def test_tokens_may_be_stored_in_any_order_if_their_positions_say_where_they_stand():
    model, order = network(), torch.tensor([0, 3, 1, 4, 2])
    states, stop_logit = model.read(IDS[:1])
    moved, moved_stop = model.read(IDS[:1, order], positions=order[None])
    torch.testing.assert_close(moved, states[:, order])
    torch.testing.assert_close(moved_stop, stop_logit)
    assert not torch.allclose(model.read(IDS[:1, order])[1], stop_logit)


def test_a_text_of_max_length_and_bos_fit_and_one_token_more_is_refused():
    network()(torch.full((1, 17), 4))
    with pytest.raises(UserError, match="17 tokens, 16 fit"):
        network()(torch.full((1, 18), 4))


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
    tied, untied = network(tie_embeddings=True), network()
    assert tied.head.weight is tied.embed.weight
    assert untied.head.weight is not untied.embed.weight


def test_dropout_acts_in_training_only():
    model = network(dropout=0.5)
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))
