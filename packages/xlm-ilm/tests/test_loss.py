from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from xlm.errors import UserError
from xlm.testing.contracts import LossContract
from xlm.testing.factories import infill_examples, keyed, lm_examples, seq2seq_examples, tiny_tokenizer
from xlm_ilm.collator import ILMCollator, ILMInfillCollator, ILMSeq2SeqCollator
from xlm_ilm.dropping import drop, span_numbers
from xlm_ilm.loss import ILMLoss
from xlm_ilm.model import ILMTransformer
from xlm_ilm.types import ILMBatch

TOKENIZER = tiny_tokenizer()  # 0 pad, 1 mask, 2 bos, 3 eos, 8 letters
PAD, MASK, BOS, EOS = 0, 1, 2, 3


def network(**options: Any) -> ILMTransformer:
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "max_length": 32, "d_model": 16, "n_layers": 2, "n_heads": 2}
    model = ILMTransformer(**{**sizes, **options}).double().eval()
    nn.init.constant_(model.stop_head.bias, 0.3)
    return model


def ilm_loss(model: nn.Module | None = None, **options: Any) -> ILMLoss:
    return ILMLoss(model=network() if model is None else model, tokenizer=TOKENIZER, **options)


def uniform_model() -> ILMTransformer:
    model = network()
    for parameter in (model.head.weight, model.stop_head.weight, model.stop_head.bias):
        nn.init.zeros_(parameter)
    return model


def ilm_batch(
    full: torch.Tensor, droppable: torch.Tensor, dropped: torch.Tensor, *, ends: bool, trains_stop: bool
) -> ILMBatch:
    """Rows without padding, of which ``dropped`` is missing."""
    span = span_numbers(droppable)
    kept = drop(full, None, span, dropped, PAD)
    return {
        **vars(kept),
        "full_ids": full,
        "full_mask": None,
        "span": span,
        "counts_stop": ends,
        "trains_stop": trains_stop,
        "n_tokens": droppable.sum(1) + int(ends),
        "index": torch.arange(len(full)),
        "noise_key": torch.arange(len(full)),
    }


def of_text(ids: list[int], missing: list[int], **options: Any) -> ILMBatch:
    """One text, BOS in front, that misses the tokens at these places, the first at 1."""
    full = torch.tensor([[BOS, *ids]])
    places = torch.arange(full.shape[1])[None]
    dropped = torch.isin(places, torch.tensor(missing, dtype=torch.int64))
    return ilm_batch(full, places > 0, dropped, **{"ends": True, "trains_stop": True, **options})


def dense(model: nn.Module, batch: ILMBatch, stop_weight: float = 1.0) -> torch.Tensor:
    """The loss as the paper writes it, with a target of batch x gaps x vocabulary."""
    states, stop_logit = model.read(batch["input_ids"], batch["attention_mask"])
    logits = model.head(states)
    logits[..., [PAD, MASK, BOS, *([EOS] if batch["counts_stop"] else [])]] = -math.inf
    logits[~batch["gaps"]] = -math.inf
    target = torch.zeros_like(logits).flatten(0, 1)
    target.index_put_((batch["rows"], batch["tokens"]), target.new_tensor(1.0), accumulate=True)
    target = target.view_as(logits)
    total = torch.zeros((), dtype=logits.dtype)
    for i, n in enumerate(batch["n_dropped"].tolist()):
        cost = torch.zeros((), dtype=logits.dtype)
        if n:
            log_p = logits[i].flatten().log_softmax(0)
            cost = cost - log_p[target[i].flatten() > 0] @ target[i].flatten()[target[i].flatten() > 0] / n
        if batch["trains_stop"]:
            cost = cost + (F.softplus(stop_logit[i]) if n else stop_weight * F.softplus(-stop_logit[i]))
        total = total + (int((batch["span"][i] >= 0).sum()) + 1) * cost
    return total / batch["n_tokens"].sum()


class TestWindowLoss(LossContract):
    def loss(self):
        return ilm_loss()

    def collator(self):
        return ILMCollator(tokenizer=TOKENIZER, seed=0, max_length=8)

    def examples(self):
        return lm_examples([8, 8, 8, 8])


class TestOpenLoss(TestWindowLoss):
    def loss(self):
        return ilm_loss(network(tie_embeddings=True), stop_weight=3.0)

    def collator(self):
        return ILMCollator(tokenizer=TOKENIZER, seed=0, max_length=8, event_space="open")

    def examples(self):
        return lm_examples([3, 8, 0, 5])


class TestSeq2SeqLoss(TestWindowLoss):
    def collator(self):
        return ILMSeq2SeqCollator(tokenizer=TOKENIZER, seed=0, max_prompt_length=6, max_target_length=5)

    def examples(self):
        return seq2seq_examples([3, 6, 0, 2], [4, 1, 2, 0])


class TestInfillLoss(TestWindowLoss):
    def collator(self):
        return ILMInfillCollator(tokenizer=TOKENIZER, seed=0, max_length=10)

    def examples(self):
        return infill_examples([3, 10, 5])


ROLES = [TestWindowLoss(), TestOpenLoss(), TestSeq2SeqLoss(), TestInfillLoss()]


def gradients(loss: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, allow_unused=True))


@pytest.mark.parametrize("stop_weight", [1.0, 2.5])
@pytest.mark.parametrize("role", ROLES, ids=lambda role: type(role).__name__)
def test_loss_and_gradients_are_those_of_the_dense_formula(role, stop_weight):
    loss, batch = ilm_loss(stop_weight=stop_weight), role.collator()(role.examples() * 3)
    ours, theirs = loss.loss_fn(batch)["loss"], dense(loss.model, batch, stop_weight)
    assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert_close(gradients(ours, loss.model), gradients(theirs, loss.model), rtol=0, atol=1e-9)


def test_a_uniform_model_costs_log_of_gaps_times_tokens_and_one_bit_to_stop():
    out = ilm_loss(uniform_model()).loss_fn(of_text([4, 5, 6], [2]))  # 3 gaps are open, 8 letters
    assert out["insertion_cross_entropy"].item() == pytest.approx(math.log(3 * 8))
    assert out["stop_loss"].item() == pytest.approx(math.log(2))
    assert out["loss"].item() == pytest.approx(math.log(3 * 8) + math.log(2))
    assert out["nll"].item() == pytest.approx(4 * (math.log(3 * 8) + math.log(2)) - math.log(6))


def test_eos_can_be_inserted_in_a_window_but_not_where_the_end_counts():
    loss = ilm_loss(uniform_model())
    window = loss.loss_fn(of_text([4, EOS, 6], [2], ends=False))
    assert window["insertion_cross_entropy"].item() == pytest.approx(4 * math.log(3 * 9) / 3)
    assert window["nll"].item() == pytest.approx(4 * math.log(3 * 9) - math.log(6))
    assert loss.loss_fn(of_text([4, EOS, 6], [2]))["loss"].isposinf()


@torch.no_grad()
def enumerated_bound(loss: ILMLoss, full: torch.Tensor, droppable: torch.Tensor, ends: bool) -> float:
    """Mean over all orders of -log p(text, order), minus log L!; every step by the dense formula."""
    places, model = droppable[0].nonzero().squeeze(1).tolist(), loss.model
    cost = 0.0

    @cache
    def said(missing: tuple[int, ...]) -> tuple[ILMBatch, torch.Tensor, torch.Tensor]:
        dropped = torch.zeros_like(droppable)
        dropped[0, list(missing)] = True
        batch = ilm_batch(full, droppable, dropped, ends=ends, trains_stop=True)
        states, stop_logit = model.read(batch["input_ids"])
        logits = model.head(states)[0]
        logits[:, [PAD, MASK, BOS, *([EOS] if ends else [])]] = -math.inf
        logits[~batch["gaps"][0]] = -math.inf
        return batch, logits.flatten().log_softmax(0).view_as(logits), stop_logit[0]

    for order in itertools.permutations(places):
        for done, place in enumerate(order):
            missing = tuple(sorted(order[done:]))
            batch, log_p, stop_logit = said(missing)
            gap = int(batch["rows"][missing.index(place)])
            cost -= float(log_p[gap, full[0, place]]) + ends * float(F.logsigmoid(-stop_logit))
        cost -= ends * float(F.logsigmoid(said(())[2]))
    n_orders = math.factorial(len(places))
    return cost / n_orders - math.log(n_orders)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(
    ("ids", "given"),
    [([4, 5, 4, 4], []), ([4, 5, 6, 7, 6], [1, 2]), ([6, 4, 5, 5, 7], [3]), ([4], []), ([], []), ([4, 5], [1, 2])],
    ids=["text", "target", "two spans", "one token", "empty", "nothing to insert"],
)
def test_the_mean_of_nll_over_all_draws_is_the_bound_by_enumeration_of_orders(ids, given, ends):
    full = torch.tensor([[BOS, *ids]])
    droppable = torch.tensor([[place > 0 and place not in given for place in range(len(ids) + 1)]])
    places, loss = droppable[0].nonzero().squeeze(1).tolist(), ilm_loss()
    mean = 0.0
    for n in range(len(places) + 1):
        sets = list(itertools.combinations(places, n))
        for missing in sets:
            dropped = torch.zeros_like(droppable)
            dropped[0, list(missing)] = True
            batch = ilm_batch(full, droppable, dropped, ends=ends, trains_stop=True)
            mean += float(loss.loss_fn(batch)["nll"]) / len(sets) / (len(places) + 1)
    assert mean == pytest.approx(enumerated_bound(loss, full, droppable, ends), abs=1e-9)


def test_the_stop_head_learns_from_windows_and_texts_but_not_from_templates():
    for trains_stop in (True, False):
        loss = ilm_loss()
        out = loss.loss_fn(of_text([4, 5], [1], ends=False, trains_stop=trains_stop))
        gradient = torch.autograd.grad(out["loss"], loss.model.stop_head.bias)[0]
        assert (float(gradient.abs()) > 0) == trains_stop
        assert (float(out["stop_loss"]) > 0) == trains_stop


def test_the_stop_heads_target_is_that_nothing_is_missing():
    loss = ilm_loss()
    for missing, sign in (([], -1), ([1], 1), ([1, 2], 1)):
        out = loss.loss_fn(of_text([4, 5], missing))
        assert math.copysign(1, torch.autograd.grad(out["loss"], loss.model.stop_head.bias)[0].item()) == sign


def test_where_nothing_is_missing_or_to_be_learned_loss_and_gradients_are_zero():
    collate = ILMInfillCollator(tokenizer=TOKENIZER, seed=0, max_length=4)
    loss = ilm_loss()
    out = loss.loss_fn(collate(keyed([{"input_ids": [4, 5], "fixed": [1, 1]}] * 3)))
    assert out["loss"].item() == out["insertion_cross_entropy"].item() == 0
    assert out["nll"].tolist() == [0, 0, 0]
    assert out["n_tokens"].tolist() == [0, 0, 0]
    assert int(out["loss_denominator"]) == 0
    assert not any(gradient.any() for gradient in gradients(out["loss"], loss.model))


def test_a_row_that_misses_nothing_teaches_the_head_nothing():
    loss = ilm_loss()
    out = loss.loss_fn(of_text([4, 5], []))
    assert not torch.autograd.grad(out["loss"], loss.model.head.weight)[0].any()


@pytest.mark.parametrize(
    ("collate", "rows"),
    [
        (TestOpenLoss().collator(), lm_examples([0, 1, 8])),
        (TestOpenLoss().collator(), lm_examples([0])),
        (TestSeq2SeqLoss().collator(), seq2seq_examples([0, 6, 6], [1, 0, 5])),
        (TestInfillLoss().collator(), infill_examples([1, 10], fixed_rate=0.0)),
        (TestInfillLoss().collator(), infill_examples([1, 10], fixed_rate=1.0)),
    ],
    ids=["texts", "empty text", "targets", "all missing", "all given"],
)
def test_empty_and_greatest_rows_have_finite_losses_and_gradients(collate, rows):
    loss = ilm_loss()
    for position in range(6):  # other numbers of missing tokens
        out = loss.loss_fn(collate([{**row, "position": position + 7 * i} for i, row in enumerate(rows)]))
        assert out["loss"].isfinite()
        assert out["nll"].isfinite().all()
        assert int(out["loss_denominator"]) == int(out["n_tokens"].sum())
        assert all(gradient.isfinite().all() for gradient in gradients(out["loss"], loss.model))


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("missing", [[], [1]])
def test_every_parameter_takes_part_whatever_is_missing_or_learned(missing, ends):
    loss = ilm_loss()
    out = loss.loss_fn(of_text([4, 5], missing, ends=ends, trains_stop=ends))
    torch.autograd.grad(out["loss"], list(loss.model.parameters()))  # fails at one that is not in the graph


@pytest.mark.parametrize("stop_weight", [0.0, -1.0, math.inf, math.nan])
def test_a_stop_weight_that_is_no_weight_is_refused_by_its_key(stop_weight):
    with pytest.raises(UserError, match=r"loss\.stop_weight"):
        ilm_loss(stop_weight=stop_weight)


def test_it_can_be_built_without_memory():
    with torch.device("meta"):  # configurations are checked there
        loss = ilm_loss()
    assert loss.suppressed_with_end.device.type == "meta"


def test_bf16_autocast_gives_nearly_the_same_loss():
    loss = ilm_loss(network().float())
    batch = ILMCollator(tokenizer=TOKENIZER, seed=0, max_length=8)(lm_examples([8] * 4))
    exact = loss.loss_fn(batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss.loss_fn(batch)["loss"]
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.slow
def test_the_compiled_loss_is_the_loss(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch 2.11 trips over checked types
    loss, collate = ilm_loss(), TestOpenLoss().collator()
    compiled = torch.compile(loss.loss_fn)
    for n in (4, 6):
        batch = collate(lm_examples([8] * n))
        assert_close(compiled(batch)["loss"], loss.loss_fn(batch)["loss"])
