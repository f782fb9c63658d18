from __future__ import annotations

import itertools
import math
from typing import Any

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from xlm.noise import CosineSchedule, GeometricSchedule, LinearSchedule, LogLinearSchedule, PolynomialSchedule
from xlm.testing.contracts import LossContract
from xlm.testing.factories import infill_examples, keyed, lm_examples, seq2seq_examples, tiny_tokenizer
from xlm.testing.toy import InconsistentDenoiser
from xlm_mdlm.collator import MDLMCollator, MDLMInfillCollator, MDLMSeq2SeqCollator
from xlm_mdlm.loss import MDLMLoss
from xlm_mdlm.model import MDLMTransformer
from xlm_mdlm.types import MDLMBatch

TOKENIZER = tiny_tokenizer()  # 0 pad, 1 mask, 2 bos, 3 eos, 8 letters
PAD, MASK, EOS = 0, 1, 3
N_GENERATED = 9  # letters and EOS


def network(**options: Any) -> MDLMTransformer:
    torch.manual_seed(0)
    model = MDLMTransformer(
        vocab_size=12, max_length=32, d_model=16, n_layers=2, n_heads=2, **{"tie_embeddings": False, **options}
    )
    return model.double().eval()


def mdlm_loss(model: nn.Module | None = None) -> MDLMLoss:
    return MDLMLoss(model=network() if model is None else model, tokenizer=TOKENIZER)


def uniform_model() -> MDLMTransformer:
    model = network()
    nn.init.zeros_(model.head.weight)
    return model


def mdlm_batch(
    noisy: list[list[int]], target: list[list[int]], elbo_weight: list[float], n_tokens: list[int], **entries: Any
) -> MDLMBatch:
    batch: Any = {
        "input_ids": torch.tensor(noisy),
        "target_ids": torch.tensor(target),
        "attention_mask": None,
        "positions": None,
        "segments": None,
        "predicted": torch.ones(len(noisy), len(noisy[0]), dtype=torch.bool),
        "rows": None,
        "mask_rate": torch.full((len(noisy),), 0.5),
        "elbo_weight": torch.tensor(elbo_weight),
        "n_tokens": torch.tensor(n_tokens),
        "index": torch.arange(len(noisy)),
        "noise_key": torch.arange(len(noisy)),
        **entries,
    }
    return batch


def plain_formula(model: nn.Module, batch: MDLMBatch) -> torch.Tensor:
    """The loss as the paper writes it, with logits everywhere."""
    logits = model(
        batch["input_ids"],
        batch["attention_mask"],
        positions=batch["positions"],
        segments=batch["segments"],
        mask_rate=batch["mask_rate"],
    )
    logits[..., [PAD, MASK, 2]] = -torch.inf
    hidden = batch["input_ids"] == MASK
    targets = batch["target_ids"].masked_fill(~hidden, EOS)
    ce = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    nll = torch.where(hidden, ce * batch["elbo_weight"][:, None], 0.0).sum(-1)
    return nll.sum() / batch["n_tokens"].sum()


def noisy_options(**options: Any) -> dict[str, Any]:
    return {"tokenizer": TOKENIZER, "noise_schedule": LinearSchedule(), "seed": 0, **options}


class TestWindowLoss(LossContract):
    def loss(self):
        return mdlm_loss()

    def collator(self):
        return MDLMCollator(**noisy_options(max_length=8))

    def examples(self):
        return lm_examples([8, 8, 8])


class TestOpenLoss(TestWindowLoss):
    def loss(self):
        return mdlm_loss(network(tie_embeddings=True))

    def collator(self):
        return MDLMCollator(**noisy_options(max_length=8, event_space="open"))

    def examples(self):
        return lm_examples([3, 7, 5])


class TestSeq2SeqLoss(LossContract):
    def loss(self):
        model = network(condition_on_mask_rate=True)
        for name, parameter in model.named_parameters():
            if "modulation" in name:
                nn.init.normal_(parameter, std=0.1)
        return mdlm_loss(model)

    def collator(self):
        return MDLMSeq2SeqCollator(**noisy_options(max_prompt_length=6, max_target_length=5))

    def examples(self):
        return seq2seq_examples([3, 6, 0], [4, 1, 2])


class TestInfillLoss(LossContract):
    def loss(self):
        return mdlm_loss()

    def collator(self):
        return MDLMInfillCollator(**noisy_options(max_length=10))

    def examples(self):
        return infill_examples([3, 10, 5])


def test_uniform_model_costs_log_vocab_per_hidden_token():
    batch = mdlm_batch(noisy=[[MASK, 5, MASK, 7]], target=[[4, 5, 6, 7]], elbo_weight=[2.0], n_tokens=[4])
    out = mdlm_loss(uniform_model()).loss_fn(batch)
    assert out["loss"].item() == pytest.approx(2.0 * math.log(N_GENERATED) * 2 / 4)
    assert out["nll"].tolist() == pytest.approx([2.0 * math.log(N_GENERATED) * 2])
    assert out["masked_cross_entropy"].item() == pytest.approx(math.log(N_GENERATED))
    assert out["masked_fraction"].item() == pytest.approx(2 / 4)


def test_each_row_has_its_own_weight_and_the_denominator_is_of_the_batch():
    batch = mdlm_batch([[MASK, 5], [MASK, MASK]], [[4, 5], [6, EOS]], elbo_weight=[3.0, 1.5], n_tokens=[2, 1])
    out = mdlm_loss(uniform_model()).loss_fn(batch)
    assert out["nll"].tolist() == pytest.approx([3 * math.log(N_GENERATED), 1.5 * 2 * math.log(N_GENERATED)])
    assert out["loss_denominator"].item() == 3
    assert out["loss"].item() == pytest.approx((3 + 3) * math.log(N_GENERATED) / 3)


def test_each_row_says_what_its_hidden_tokens_cost_unweighted():
    noisy = [[MASK, 4, MASK, 5], [4, 4, 4, 4], [MASK] * 4]
    losses = mdlm_loss(uniform_model()).loss_fn(
        mdlm_batch(noisy, [[4, 5, 6, 7]] * 3, elbo_weight=[3.0, 5.0, 7.0], n_tokens=[4, 4, 4])
    )
    assert losses["n_masked"].tolist() == [2, 0, 4]
    torch.testing.assert_close(losses["masked_nll"], losses["n_masked"] * losses["masked_cross_entropy"])
    torch.testing.assert_close(losses["nll"], torch.tensor([3.0, 5.0, 7.0]) * losses["masked_nll"])


def test_a_mask_token_in_a_prompt_is_not_predicted():
    predicted = torch.tensor([[False, True, True]])
    batch = mdlm_batch([[MASK, MASK, 5]], [[MASK, 4, 5]], [1.0], [2], predicted=predicted)
    assert mdlm_loss(uniform_model()).loss_fn(batch)["nll"].item() == pytest.approx(math.log(N_GENERATED))


@pytest.mark.parametrize("conditioned", [False, True])
def test_loss_and_gradient_at_selected_rows_are_those_of_the_plain_formula(conditioned):
    model = network(condition_on_mask_rate=conditioned)
    batch = MDLMInfillCollator(**noisy_options(max_length=10))(infill_examples([3, 10, 5, 7], fixed_rate=0.2))
    loss, reference = mdlm_loss(model).loss_fn(batch)["loss"], plain_formula(model, batch)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(reference, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_hidden_rows_are_found_where_the_batch_does_not_name_them():
    batch = MDLMCollator(**noisy_options(max_length=8))(lm_examples([8] * 4))
    loss = mdlm_loss()
    assert torch.equal(loss.loss_fn(batch)["nll"], loss.loss_fn({**batch, "rows": None})["nll"])


@pytest.mark.parametrize("sizes", [[1] * 8, [2] * 4, [8], [3, 5]])
def test_accumulated_gradients_are_those_of_one_batch(sizes):
    collate, loss, examples = (
        MDLMCollator(**noisy_options(max_length=8, event_space="open")),
        mdlm_loss(),
        lm_examples([1, 7, 3, 2, 5, 6, 0, 4]),
    )
    parameters = list(loss.model.parameters())
    whole = torch.autograd.grad(loss.loss_fn(collate(examples))["loss"], parameters)
    chunks = [list(itertools.islice(rest, n)) for rest in [iter(examples)] for n in sizes]
    outs = [loss.loss_fn(collate(chunk)) for chunk in chunks]
    total = sum(out["loss"] * out["loss_denominator"] for out in outs) / sum(out["loss_denominator"] for out in outs)
    for ours, theirs in zip(torch.autograd.grad(total, parameters), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def gradients_of(loss: MDLMLoss, batch: MDLMBatch) -> list[torch.Tensor]:
    parameters = list(loss.model.parameters())
    return list(torch.autograd.grad(loss.loss_fn(batch)["loss"], parameters, materialize_grads=True))


def test_where_nothing_is_hidden_loss_and_gradient_are_zero():
    batch = mdlm_batch([[4, 5], [6, 7]], [[4, 5], [6, 7]], [1e6, 1e6], [2, 2])
    loss = mdlm_loss()
    out = loss.loss_fn(batch)
    assert out["loss"].item() == out["masked_cross_entropy"].item() == out["masked_fraction"].item() == 0
    assert all((gradient == 0).all() for gradient in gradients_of(loss, batch))


def test_a_batch_of_padding_alone_is_finite_and_teaches_nothing():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    batch = mdlm_batch([[PAD] * 3] * 2, [[PAD] * 3] * 2, [1.0] * 2, [0, 0], attention_mask=nothing, predicted=nothing)
    loss = mdlm_loss()
    out = loss.loss_fn(batch)
    assert out["loss"].item() == out["loss_denominator"].item() == 0
    assert all((gradient == 0).all() for gradient in gradients_of(loss, batch))


@pytest.mark.parametrize("noisy", [[[MASK] * 5], [[MASK]], [[MASK, PAD, PAD]]])
def test_rows_of_masks_alone_and_of_one_token_are_finite(noisy):
    real = torch.tensor(noisy) != PAD
    target = torch.where(real, 4, PAD).tolist()
    batch = mdlm_batch(noisy, target, [1.0], [int(real.sum())], attention_mask=real, predicted=real)
    loss = mdlm_loss()
    assert loss.loss_fn(batch)["loss"].isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients_of(loss, batch))


def test_packed_documents_cost_what_they_cost_alone():
    noisy, target = [[MASK, 5, 6, MASK, MASK, 9]], [[4, 5, 6, 7, 8, 9]]
    loss, segments = mdlm_loss(), torch.tensor([[0, 0, 0, 1, 1, 1]])
    packed = loss.loss_fn(mdlm_batch(noisy, target, [1.5], [6], segments=segments))["nll"]
    apart = [mdlm_batch([noisy[0][i : i + 3]], [target[0][i : i + 3]], [1.5], [3]) for i in (0, 3)]
    torch.testing.assert_close(packed, sum(loss.loss_fn(batch)["nll"] for batch in apart))


class SaysItsPlace(nn.Module):
    """A network with absolute positions: at place p it is certain of letter 4 + p."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 12, bias=False)
        nn.init.eye_(self.head.weight)

    def hidden(self, input_ids, attention_mask=None, *, positions=None, **_):
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids) if positions is None else positions
        return 50.0 * F.one_hot(4 + positions, 12).float()


def test_places_are_counted_from_the_first_token_of_the_prompt():
    rows = [{"prompt_ids": [4, 5], "target_ids": [6, 7]}, {"prompt_ids": [4], "target_ids": [5, 6, 7]}]
    collate = MDLMSeq2SeqCollator(**noisy_options(max_prompt_length=4, max_target_length=4, t_min=0.99))
    batch = collate(keyed(rows))
    hidden_letters = (batch["input_ids"] == MASK) & (batch["target_ids"] != EOS)
    assert hidden_letters.sum() >= 4
    batch["rows"] = hidden_letters.flatten().nonzero().squeeze(1)
    assert mdlm_loss(SaysItsPlace()).loss_fn(batch)["loss"].item() == pytest.approx(0, abs=1e-6)


def cross_entropies(model: InconsistentDenoiser, ids: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Of every set of hidden positions: their summed cross-entropy, nats."""
    costs = {}
    for k in range(1, len(ids) + 1):
        for chosen in itertools.combinations(range(len(ids)), k):
            at = list(chosen)
            noisy = ids.clone()
            noisy[at] = MASK
            log_p = model(noisy[None])[0].log_softmax(-1).detach()
            costs[chosen] = -float(log_p[at, ids[at]].sum())
    return costs


def integral_over_mask_rates(costs: dict[tuple[int, ...], float], n: int, low: float, high: float) -> float:
    """Of E_u[summed cross-entropy] / u, by the midpoint rule."""
    u = low + (high - low) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    expected = sum(u ** len(chosen) * (1 - u) ** (n - len(chosen)) * cost for chosen, cost in costs.items())
    return float((expected / u).mean()) * (high - low)


def test_the_integral_over_mask_rates_is_the_any_order_bound():
    costs = cross_entropies(InconsistentDenoiser(token_ids=[4, 5, 6, 7], vocab_size=12), torch.tensor([4, 6, 5, 7]))
    sum_over_sizes = sum(cost / (len(chosen) * math.comb(4, len(chosen))) for chosen, cost in costs.items())
    assert integral_over_mask_rates(costs, 4, 0, 1) == pytest.approx(sum_over_sizes, rel=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        LinearSchedule(),
        LogLinearSchedule(eps=0.1),
        CosineSchedule(),
        PolynomialSchedule(power=2.0),
        GeometricSchedule(sigma_min=0.05),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_the_expected_loss_is_the_bound_over_the_mask_rates_that_the_schedule_visits(schedule):
    model, ids = InconsistentDenoiser(token_ids=[4, 5, 6, 7], vocab_size=12), torch.tensor([4, 6, 5, 7])
    low, high = schedule.mask_rate(torch.tensor([0.02, 1.0], dtype=torch.float64)).tolist()
    expected = integral_over_mask_rates(cross_entropies(model, ids), 4, low, high)
    collate = MDLMCollator(**noisy_options(max_length=4, noise_schedule=schedule, t_min=0.02))
    nll = mdlm_loss(model).loss_fn(collate(keyed([{"input_ids": ids.tolist()}] * 40_000)))["nll"]
    standard_error = float(nll.std()) / math.sqrt(len(nll))
    assert abs(float(nll.mean()) - expected) < 4 * standard_error
    assert standard_error < 0.02 * expected


def test_a_cut_at_t_min_loses_its_part_of_the_bound():
    ids = [4, 6, 5, 7]
    collate = MDLMCollator(**noisy_options(max_length=4, t_min=0.25))
    nll = mdlm_loss(uniform_model()).loss_fn(collate(keyed([{"input_ids": ids}] * 20_000)))["nll"]
    standard_error = float(nll.std()) / math.sqrt(len(nll))
    assert abs(float(nll.mean()) - 0.75 * 4 * math.log(N_GENERATED)) < 4 * standard_error


class KnowsOnlyTheMaskRate(nn.Module):
    """Gives letter 4 the probability u and letter 5 the rest, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 12, bias=False, dtype=torch.float64)
        nn.init.eye_(self.head.weight)

    def hidden(self, input_ids, attention_mask=None, *, mask_rate, **_):
        logits = torch.full((len(input_ids), 12), -1e4, dtype=torch.float64)
        logits[:, 4], logits[:, 5] = mask_rate.double().log(), (1 - mask_rate.double()).log()
        return logits[:, None].expand(-1, input_ids.shape[1], -1)


def test_a_conditioned_network_is_told_the_rate_at_which_tokens_were_hidden():
    collate = MDLMCollator(**noisy_options(max_length=4, t_min=0.0))
    batch = collate(keyed([{"input_ids": [4] * 4}] * 20_000))
    nll = mdlm_loss(KnowsOnlyTheMaskRate()).loss_fn(batch)["nll"]
    standard_error = float(nll.std()) / math.sqrt(len(nll))
    integral_of_minus_log_u = 1.0
    assert abs(float(nll.mean()) - 4 * integral_of_minus_log_u) < 4 * standard_error


def test_bf16_autocast_gives_nearly_the_same_loss():
    model = network().float()
    batch = MDLMCollator(**noisy_options(max_length=8))(lm_examples([8] * 4))
    exact = mdlm_loss(model).loss_fn(batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = mdlm_loss(model).loss_fn(batch)["loss"]
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.slow
def test_the_compiled_loss_is_the_loss(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch 2.11 trips over checked types
    loss, collate = mdlm_loss(), MDLMCollator(**noisy_options(max_length=8))
    compiled = torch.compile(loss.loss_fn)
    for n in (4, 6):
        batch = collate(lm_examples([8] * n))
        torch.testing.assert_close(compiled(batch)["loss"], loss.loss_fn(batch)["loss"])
