from __future__ import annotations

import itertools
import math
from typing import Any

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from xlm.testing.contracts import LossContract
from xlm.testing.factories import infill_examples, keyed, lm_examples, seq2seq_examples, tiny_tokenizer
from xlm_mlm.collator import MLMCollator, MLMInfillCollator, MLMSeq2SeqCollator
from xlm_mlm.loss import MLMLoss
from xlm_mlm.model import MLMTransformer
from xlm_mlm.types import MLMBatch

TOKENIZER = tiny_tokenizer()  # 0 pad, 1 mask, 2 bos, 3 eos, 8 letters
PAD, MASK, EOS = 0, 1, 3
N_GENERATED = 9  # letters and EOS
NOISY: dict[str, Any] = {"tokenizer": TOKENIZER, "seed": 0}


def network(**options: Any) -> MLMTransformer:
    torch.manual_seed(0)
    return MLMTransformer(vocab_size=12, max_length=32, d_model=16, n_layers=2, n_heads=2, **options).double().eval()


def mlm_loss(model: nn.Module | None = None) -> MLMLoss:
    return MLMLoss(model=network() if model is None else model, tokenizer=TOKENIZER)


def uniform_model() -> MLMTransformer:
    model = network()
    nn.init.zeros_(model.head.weight)
    return model


def mlm_batch(seen: list[list[int]], target: list[list[int]], rows: list[int], **entries: Any) -> MLMBatch:
    batch: Any = {
        "input_ids": torch.tensor(seen),
        "target_ids": torch.tensor(target),
        "attention_mask": None,
        "positions": None,
        "segments": None,
        "predicted": torch.ones(len(seen), len(seen[0]), dtype=torch.bool),
        "rows": torch.tensor(rows, dtype=torch.int64),
        "n_tokens": torch.full((len(seen),), len(seen[0])),
        "index": torch.arange(len(seen)),
        "noise_key": torch.arange(len(seen)),
        **entries,
    }
    return batch


def plain_formula(model: nn.Module, batch: MLMBatch) -> torch.Tensor:
    """The loss with logits everywhere."""
    logits = model(
        batch["input_ids"], batch["attention_mask"], positions=batch["positions"], segments=batch["segments"]
    )
    logits[..., [PAD, MASK, 2]] = -torch.inf
    return F.cross_entropy(logits.flatten(0, 1)[batch["rows"]], batch["target_ids"].flatten()[batch["rows"]])


class TestWindowLoss(LossContract):
    def loss(self):
        return mlm_loss()

    def collator(self):
        return MLMCollator(**NOISY, max_length=8)

    def examples(self):
        return lm_examples([8, 8, 8])


class TestOpenLossOfBert(TestWindowLoss):
    def loss(self):
        return mlm_loss(network(tie_embeddings=True))

    def collator(self):
        rates = {"mask_rate": 0.5, "random_token_rate": 0.3, "keep_rate": 0.3}
        return MLMCollator(**NOISY, max_length=8, event_space="open", **rates)

    def examples(self):
        return lm_examples([3, 7, 5])


class TestSeq2SeqLoss(LossContract):
    def loss(self):
        return mlm_loss()

    def collator(self):
        return MLMSeq2SeqCollator(**NOISY, max_prompt_length=6, max_target_length=5)

    def examples(self):
        return seq2seq_examples([3, 6, 0], [4, 1, 2])


class TestInfillLoss(LossContract):
    def loss(self):
        return mlm_loss()

    def collator(self):
        return MLMInfillCollator(**NOISY, max_length=10)

    def examples(self):
        return infill_examples([3, 10, 5])


def test_a_uniform_model_costs_log_vocab_per_chosen_token_whatever_stands_there():
    batch = mlm_batch([[MASK, 5, 9, 7], [4, 4, 4, 4]], [[4, 5, 6, 7], [4, 4, 4, 4]], rows=[0, 2, 5])
    out = mlm_loss(uniform_model()).loss_fn(batch)
    assert out["loss"].item() == pytest.approx(math.log(N_GENERATED))
    assert out["loss_denominator"].item() == 3


def test_each_row_says_what_its_chosen_tokens_cost():
    seen = [[MASK, 4, MASK, 5], [4, 4, 4, 4], [MASK] * 4]
    losses = mlm_loss(uniform_model()).loss_fn(mlm_batch(seen, [[4, 5, 6, 7]] * 3, rows=[0, 2, 8, 9, 10, 11]))
    assert losses["n_masked"].tolist() == [2, 0, 4]
    torch.testing.assert_close(losses["masked_nll"], losses["n_masked"] * losses["loss"])


def test_it_estimates_no_likelihood():
    out = mlm_loss().loss_fn(mlm_batch([[MASK, 5]], [[4, 5]], rows=[0]))
    assert not set(out) & {"nll", "n_tokens"}


def test_loss_and_gradient_at_chosen_rows_are_those_of_the_plain_formula():
    model = network()
    rates = {"mask_rate": 0.7, "random_token_rate": 0.2, "keep_rate": 0.2}
    batch = MLMInfillCollator(**NOISY, max_length=10, **rates)(infill_examples([3, 10, 5, 7], fixed_rate=0.2))
    loss, reference = mlm_loss(model).loss_fn(batch)["loss"], plain_formula(model, batch)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(reference, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sizes", [[1] * 8, [2] * 4, [8], [3, 5]])
def test_accumulated_gradients_are_those_of_one_batch(sizes):
    collate, loss = MLMCollator(**NOISY, max_length=8, event_space="open"), mlm_loss()
    examples = lm_examples([1, 7, 3, 2, 5, 6, 0, 4])
    parameters = list(loss.model.parameters())
    whole = torch.autograd.grad(loss.loss_fn(collate(examples))["loss"], parameters)
    chunks = [list(itertools.islice(rest, n)) for rest in [iter(examples)] for n in sizes]
    outs = [loss.loss_fn(collate(chunk)) for chunk in chunks]
    total = sum(out["loss"] * out["loss_denominator"] for out in outs) / sum(out["loss_denominator"] for out in outs)
    for ours, theirs in zip(torch.autograd.grad(total, parameters), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def gradients_of(loss: MLMLoss, batch: MLMBatch) -> list[torch.Tensor]:
    parameters = list(loss.model.parameters())
    return list(torch.autograd.grad(loss.loss_fn(batch)["loss"], parameters, materialize_grads=True))


def all_padding() -> MLMBatch:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    return mlm_batch([[PAD] * 3] * 2, [[PAD] * 3] * 2, [], attention_mask=nothing, predicted=nothing)


@pytest.mark.parametrize(
    "batch", [mlm_batch([[4, 5], [6, 7]], [[4, 5], [6, 7]], []), all_padding()], ids=["text", "padding"]
)
def test_where_nothing_is_chosen_loss_denominator_and_gradient_are_zero(batch):
    loss = mlm_loss()
    out = loss.loss_fn(batch)
    assert out["loss"].item() == out["loss_denominator"].item() == 0
    assert all((gradient == 0).all() for gradient in gradients_of(loss, batch))


def test_a_row_with_nothing_chosen_changes_nothing():
    loss = mlm_loss()
    alone = loss.loss_fn(mlm_batch([[MASK, 5]], [[4, 5]], [0]))
    beside = loss.loss_fn(mlm_batch([[MASK, 5], [6, 7]], [[4, 5], [6, 7]], [0]))
    torch.testing.assert_close(beside["loss"], alone["loss"])
    assert beside["loss_denominator"] == alone["loss_denominator"] == 1


@pytest.mark.parametrize("seen", [[[MASK] * 5], [[MASK]], [[MASK, PAD, PAD]]])
def test_rows_of_masks_alone_and_of_one_token_are_finite(seen):
    real = torch.tensor(seen) != PAD
    target = torch.where(real, 4, PAD).tolist()
    rows = real.flatten().nonzero().squeeze(1).tolist()
    batch = mlm_batch(seen, target, rows, attention_mask=real, predicted=real)
    loss = mlm_loss()
    assert loss.loss_fn(batch)["loss"].isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients_of(loss, batch))


def test_a_template_without_gaps_is_finite_and_teaches_nothing():
    batch = MLMInfillCollator(**NOISY, max_length=4)(keyed([{"input_ids": [4, 5], "fixed": [1, 1]}]))
    assert mlm_loss().loss_fn(batch)["loss_denominator"].item() == 0
    assert all((gradient == 0).all() for gradient in gradients_of(mlm_loss(), batch))


def test_packed_documents_cost_what_they_cost_alone():
    seen, target = [[MASK, 5, 6, MASK, MASK, 9]], [[4, 5, 6, 7, 8, 9]]
    loss, segments = mlm_loss(), torch.tensor([[0, 0, 0, 1, 1, 1]])
    packed = loss.loss_fn(mlm_batch(seen, target, [0, 3, 4], segments=segments))["loss"]
    first = loss.loss_fn(mlm_batch([seen[0][:3]], [target[0][:3]], [0]))["loss"]
    second = loss.loss_fn(mlm_batch([seen[0][3:]], [target[0][3:]], [0, 1]))["loss"]
    torch.testing.assert_close(packed, (first + 2 * second) / 3)


class SaysItsPlace(nn.Module):
    """A network with absolute positions: at place p it is certain of letter 4 + p."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 12, bias=False)
        nn.init.eye_(self.head.weight)

    def hidden(self, input_ids, attention_mask=None, *, positions=None, segments=None):
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids) if positions is None else positions
        return 50.0 * F.one_hot(4 + positions, 12).float()


def test_places_are_counted_from_the_first_token_of_the_prompt():
    rows = [{"prompt_ids": [4, 5], "target_ids": [6, 7]}, {"prompt_ids": [4], "target_ids": [5, 6, 7]}]
    collate = MLMSeq2SeqCollator(**NOISY, max_prompt_length=4, max_target_length=4, mask_rate=1.0)
    batch = collate(keyed(rows))
    letters = (batch["target_ids"] != EOS) & batch["predicted"]
    batch["rows"] = letters.flatten().nonzero().squeeze(1)
    assert mlm_loss(SaysItsPlace()).loss_fn(batch)["loss"].item() == pytest.approx(0, abs=1e-6)


def test_bf16_autocast_gives_nearly_the_same_loss():
    model = network().float()
    batch = MLMCollator(**NOISY, max_length=8)(lm_examples([8] * 4))
    exact = mlm_loss(model).loss_fn(batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = mlm_loss(model).loss_fn(batch)["loss"]
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.slow
def test_the_compiled_loss_is_the_loss(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch 2.11 trips over checked types
    loss, collate = mlm_loss(), MLMCollator(**NOISY, max_length=8)
    compiled = torch.compile(loss.loss_fn)
    for n in (4, 6):
        batch = collate(lm_examples([8] * n))
        torch.testing.assert_close(compiled(batch)["loss"], loss.loss_fn(batch)["loss"])
