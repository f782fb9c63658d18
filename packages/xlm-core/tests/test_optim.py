from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from xlm.errors import UserError
from xlm.nn.blocks import Block, LayerNorm
from xlm.optim import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    WSDSchedule,
    adamw,
    global_norm,
    parameter_groups,
)


def model() -> nn.ModuleDict:
    head = nn.Linear(8, 5, bias=True)
    parts = {"embed": nn.Embedding(5, 8), "block": Block(8, 2), "norm": LayerNorm(8), "head": head}
    return nn.ModuleDict(parts)


def test_only_matrices_that_are_no_embeddings_decay():
    network = model()
    decaying, others = parameter_groups(network, 0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(p)] for p in others["params"]} == {
        "embed.weight",
        "block.attention_norm.weight",
        "block.mlp_norm.weight",
        "norm.weight",
        "head.bias",
    }
    assert len(decaying["params"]) + len(others["params"]) == len(names)


def test_a_tied_head_is_an_embedding_and_appears_once():
    network = model()
    network["head"].weight = network["embed"].weight
    decaying, others = parameter_groups(network, 0.1)
    tied = network["embed"].weight
    assert sum(p is tied for p in others["params"]) == 1
    assert all(p is not tied for p in decaying["params"])


def test_frozen_parameters_are_left_out():
    network = model()
    network["block"].requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(network, 0.1)) == 4


def test_first_step_moves_by_the_learning_rate_and_the_decay():
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, 2.0)
    optimizer = adamw(linear, lr=0.1, weight_decay=0.5, betas=(0.8, 0.9), eps=0.25)
    linear.weight.grad = torch.full_like(linear.weight, 0.75)
    optimizer.step()
    # both moments are unbiased after one step: 0.75 and 0.75^2
    assert_close(linear.weight.item(), 2.0 * (1 - 0.1 * 0.5) - 0.1 * 0.75 / (0.75 + 0.25))


def test_second_step_uses_the_given_betas():
    linear = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(linear.weight)
    optimizer = adamw(linear, lr=1.0, weight_decay=0.0, betas=(0.5, 0.75), eps=0.0)
    for gradient in (1.0, 3.0):
        before = linear.weight.item()
        linear.weight.grad = torch.full_like(linear.weight, gradient)
        optimizer.step()
    first = (0.5 * 0.5 * 1 + 0.5 * 3) / (1 - 0.5**2)
    second = (0.75 * 0.25 * 1 + 0.25 * 9) / (1 - 0.75**2)
    assert_close(linear.weight.item() - before, -first / math.sqrt(second))


def test_the_fused_kernel_is_used_where_there_is_one_and_only_there():
    assert all(group["fused"] for group in adamw(model()).param_groups)
    with torch.device("meta"):
        without_kernel = model()
    assert not any(group["fused"] for group in adamw(without_kernel).param_groups)


@pytest.mark.parametrize(
    ("key", "value"), [("lr", -1e-3), ("weight_decay", -0.1), ("betas", (0.9, 1.0)), ("betas", (-0.1, 0.9))]
)
def test_values_out_of_range_are_refused_by_their_key(key: str, value: object):
    with pytest.raises(UserError, match=f"optimizer.{key}"):
        adamw(model(), **{key: value})


@pytest.mark.parametrize("schedule", [ConstantSchedule, LinearSchedule, CosineSchedule, WSDSchedule])
def test_warm_up_grows_linearly_from_a_first_step_that_moves(schedule):
    factors = [schedule(warmup_steps=4).factor(step, 100) for step in range(5)]
    assert_close(factors, [0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("schedule", "at_quarter", "at_half", "at_end"),
    [
        (ConstantSchedule(warmup_steps=20), 1.0, 1.0, 1.0),
        (LinearSchedule(warmup_steps=20, min_ratio=0.2), 0.8, 0.6, 0.2),
        (CosineSchedule(warmup_steps=20, min_ratio=0.2), 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2),
        (WSDSchedule(warmup_steps=20, min_ratio=0.2, decay_fraction=0.8), 1 - 0.8 / 16, 0.7, 0.2),
        (WSDSchedule(warmup_steps=20), 1.0, 1.0, 0.0),
    ],
)
def test_decay_between_warm_up_and_end_equals_its_closed_form(schedule, at_quarter, at_half, at_end):
    factors = [schedule.factor(step, 100) for step in (40, 60, 100, 1000)]
    assert_close(factors, [at_quarter, at_half, at_end, at_end])


def test_a_run_shorter_than_its_warm_up_never_ends_it():
    assert CosineSchedule(warmup_steps=100).factor(9, 10) == 0.1


def test_a_schedule_drives_the_learning_rate_of_an_optimizer():
    optimizer = adamw(nn.Linear(1, 1), lr=2.0)
    scheduler = LinearSchedule(warmup_steps=1)(optimizer, 5)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert_close(rates, [2.0, 2.0, 1.5, 1.0, 0.5])


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ConstantSchedule(warmup_steps=-1), "warmup_steps"),
        (lambda: CosineSchedule(warmup_steps=-1), "warmup_steps"),
        (lambda: CosineSchedule(min_ratio=1.5), "min_ratio"),
        (lambda: WSDSchedule(decay_fraction=0.0), "decay_fraction"),
    ],
)
def test_a_schedule_out_of_range_is_refused_by_its_key(make, key: str):
    with pytest.raises(UserError, match=f"lr_scheduler.{key}"):
        make()


def test_global_norm_is_that_of_all_gradients_in_one_vector():
    network = model()
    assert global_norm(network.parameters()).item() == 0
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    network["norm"].weight.grad = None
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    assert_close(global_norm(network.parameters()), torch.cat(gradients).norm())
