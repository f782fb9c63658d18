from __future__ import annotations

import pytest
import torch
from xlm.errors import UserError
from xlm.testing.contracts import PackingContract
from xlm_arlm.model import ARLMTransformer

IDS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))


def tiny(**options):
    torch.manual_seed(0)
    options = {"vocab_size": 11, "max_length": 16, "d_model": 32, "n_layers": 2, "n_heads": 2, **options}
    return ARLMTransformer(**options).eval()


class TestTransformer(PackingContract):
    def model(self):
        return tiny()


class TestTiedTransformer(PackingContract):
    def model(self):
        return tiny(tie_embeddings=True)


def test_a_token_never_changes_what_comes_before_it():
    model = tiny()
    changed = IDS.clone()
    changed[:, 3:] = 10 - changed[:, 3:]
    before, after = model(IDS), model(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_positions_continue_from_the_cache_by_themselves():
    model = tiny().double()
    cache = model.new_cache(3, 6)
    parts = [model(IDS[:, :4], cache=cache), model(IDS[:, 4:5], cache=cache), model(IDS[:, 5:], cache=cache)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(IDS), rtol=1e-10, atol=1e-10)


def test_decoding_works_under_autocast():
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(3, 6)
        model(IDS[:, :5], cache=cache)
        last = model(IDS[:, 5:], cache=cache)[:, 0]
        torch.testing.assert_close(last.float(), model(IDS)[:, -1].float(), rtol=0.05, atol=0.05)


def test_a_tied_head_shares_the_embeddings_weight_and_an_untied_one_does_not():
    tied, untied = tiny(tie_embeddings=True), tiny()
    assert tied.head.weight is tied.embed.weight
    assert untied.head.weight is not untied.embed.weight


def test_a_layer_has_12_d_squared_weights_unless_d_ff_says_otherwise():
    def size(**options):
        return sum(p.numel() for p in tiny(**options).parameters() if p.ndim == 2)

    assert size(n_layers=3) - size() == 12 * 32**2
    assert size() - size(d_ff=64) == 2 * 2 * 32 * (128 - 64)


@pytest.mark.parametrize("n_layers", [0, 2])
def test_dropout_acts_on_embeddings_and_branches_in_training_only(n_layers):
    model = tiny(dropout=0.5, n_layers=n_layers)
    assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} == {0.5}
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))


@pytest.mark.parametrize("option", [{"dropout": 1.0}, {"dropout": -0.1}, {"n_heads": 3}])
def test_impossible_sizes_name_their_key(option):
    with pytest.raises(UserError, match=f"model.{next(iter(option))}"):
        tiny(**option)
