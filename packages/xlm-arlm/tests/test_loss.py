from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from xlm.protocols import Configurable
from xlm.testing.contracts import LossContract
from xlm.testing.factories import keyed, lm_examples, seq2seq_examples, tiny_tokenizer
from xlm_arlm.collator import ARLMCollator, ARLMSeq2SeqCollator
from xlm_arlm.loss import ARLMLoss
from xlm_arlm.model import ARLMTransformer
from xlm_arlm.predictor import ARLMPredictor

TOKENIZER = tiny_tokenizer()


def tiny_loss():
    torch.manual_seed(0)
    model = ARLMTransformer(vocab_size=12, max_length=16, d_model=16, n_layers=2, n_heads=2).double()
    torch.nn.init.normal_(model.head.weight, std=0.4)  # far from uniform
    return ARLMLoss(model=model, tokenizer=TOKENIZER)


def uniform_loss():
    loss = tiny_loss()
    torch.nn.init.zeros_(loss.model.head.weight)
    return loss


def opened(examples):
    return ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="open")(examples)


def window(examples):
    return ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="window")(examples)


class TestOpen(LossContract):
    def loss(self):
        return tiny_loss()

    def collator(self):
        return ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="open")

    def examples(self):
        return lm_examples([3, 7, 0, 5])


class TestWindow(TestOpen):
    def collator(self):
        return ARLMCollator(tokenizer=TOKENIZER, max_length=8, event_space="window")

    def examples(self):
        return lm_examples([8, 8, 8])


class TestSeq2Seq(TestOpen):
    def collator(self):
        return ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)

    def examples(self):
        return seq2seq_examples([3, 0, 6, 4], [2, 5, 0, 3])


class TestSeq2SeqWithLossOnPrompt(TestSeq2Seq):
    def collator(self):
        return ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16, loss_on_prompt=True)


def test_a_uniform_model_pays_for_the_letters_and_eos_alone():
    result = uniform_loss().loss_fn(opened(lm_examples([3, 5])))
    assert result["loss"].item() == pytest.approx(math.log(8 + 1))  # pad, mask and bos are never generated
    assert result["nll"].tolist() == pytest.approx([4 * math.log(9), 6 * math.log(9)])
    assert result["n_tokens"].tolist() == [4, 6]
    assert result["loss_denominator"].item() == 10


@pytest.mark.parametrize("loss_on_prompt", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_plain_formula(loss_on_prompt):
    loss = tiny_loss()
    collate = ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16, loss_on_prompt=loss_on_prompt)
    batch = collate(seq2seq_examples([3, 0, 6], [2, 5, 1]))
    logits = loss.model(batch["input_ids"], batch["attention_mask"], positions=batch["positions"])
    logits[..., :3] = -math.inf
    target = batch["predicted"].clone()
    if loss_on_prompt:  # columns up to the one before the longest prompt's end predict prompts
        target[:, :6] = batch["attention_mask"][:, :6]
    plain = F.cross_entropy(logits[target], batch["target_ids"][target])
    result = loss.loss_fn(batch)
    torch.testing.assert_close(result["loss"], plain)
    gradients = (torch.autograd.grad(value, list(loss.model.parameters())) for value in (result["loss"], plain))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_loss_on_prompt_leaves_the_targets_likelihood_as_it_is():
    loss, examples = tiny_loss(), seq2seq_examples([3, 0, 6], [2, 5, 1])
    plain, with_prompt = (
        loss.loss_fn(ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16, loss_on_prompt=option)(examples))
        for option in (False, True)
    )
    torch.testing.assert_close(plain["nll"], with_prompt["nll"])
    assert with_prompt["loss_denominator"] == plain["loss_denominator"] + 9
    assert plain["loss"] != with_prompt["loss"]


def test_without_segments_a_document_sees_the_one_before_it():
    loss = tiny_loss()
    ids = [4, 5, 6, 3, 7, 8, 3]
    packed = loss.loss_fn(window(keyed([{"input_ids": ids, "segments": [0] * 4 + [1] * 3}])))
    joined = loss.loss_fn(window(keyed([{"input_ids": ids}])))
    assert not torch.allclose(packed["nll"], joined["nll"])


def test_a_batch_that_predicts_nothing_has_no_loss_and_no_gradient():
    loss = tiny_loss()
    batch = window(keyed([{"input_ids": []}, {"input_ids": [4, 5]}]))
    batch = {**batch, "predicted": torch.zeros(2, 2, dtype=torch.bool), "rows": torch.zeros(0, dtype=torch.int64)}
    result = loss.loss_fn(batch)
    result["loss"].backward()
    assert result["loss"] == 0
    assert result["loss_denominator"] == 0
    assert all((parameter.grad == 0).all() for parameter in loss.model.parameters())


@pytest.mark.parametrize("collate", [opened, window])
def test_a_row_of_padding_changes_neither_loss_nor_gradient(collate):
    loss = tiny_loss()
    text = lm_examples([6])
    batch = collate(text)
    padding = {
        "input_ids": torch.zeros_like(batch["input_ids"]),
        "target_ids": torch.zeros_like(batch["input_ids"]),
        "predicted": torch.zeros_like(batch["predicted"]),
        "n_tokens": torch.zeros(1, dtype=torch.int64),
    }
    both = {**batch, **{name: torch.cat([batch[name], padding[name]]) for name in padding}}
    both["rows"] = torch.arange(int(batch["n_tokens"]))
    both["attention_mask"] = both["predicted"]
    losses = [loss.loss_fn(b)["loss"] for b in (batch, both)]
    gradients = [torch.autograd.grad(value, list(loss.model.parameters())) for value in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_row_by_row_accumulation_gives_the_gradient_of_the_batch():
    loss, examples = tiny_loss(), lm_examples([3, 7, 1])
    parameters = list(loss.model.parameters())
    whole = torch.autograd.grad(loss.loss_fn(opened(examples))["loss"], parameters)
    parts = [loss.loss_fn(opened([example])) for example in examples]
    total = sum(part["loss"] * part["loss_denominator"] for part in parts)
    accumulated = torch.autograd.grad(total / sum(part["loss_denominator"] for part in parts), parameters)
    torch.testing.assert_close(whole, accumulated)


@pytest.mark.parametrize("collate", [opened, window])
def test_its_nll_is_the_predictors_likelihood_and_says_so(collate):
    loss = tiny_loss()
    batch = collate(lm_examples([5, 5, 5]))
    likelihood = ARLMPredictor(model=loss.model, tokenizer=TOKENIZER).log_likelihood(batch)
    torch.testing.assert_close(loss.loss_fn(batch)["nll"].double(), likelihood["nll"], rtol=1e-10, atol=0)
    assert loss.nll_kind == likelihood["kind"] == "exact"


def test_configure_moves_the_constants():
    loss = tiny_loss()
    assert isinstance(loss, Configurable)
    loss.configure(SimpleNamespace(device=torch.device("meta"), seed=0))
    assert loss.suppressed.device.type == "meta"


@pytest.mark.slow
def test_a_compiled_loss_is_the_same():
    loss, batch = tiny_loss(), opened(lm_examples([3, 7]))
    compiled = torch.compile(loss.loss_fn)(batch)
    torch.testing.assert_close(compiled["loss"], loss.loss_fn(batch)["loss"])
    torch.testing.assert_close(compiled["nll"], loss.loss_fn(batch)["nll"])
