"""A loss with a network and an optimizer of its own: trained as by two bare optimizers, saved and restored whole."""

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parent))

from toy_run import (
    EXACT,
    CriticLoss,
    Hook,
    ToyLoss,
    ToyModel,
    batch_of_step,
    final_state,
    make_run,
    schedule,
    train,
    weights,
)
from xlm.checkpoint import newest_valid
from xlm.errors import UserError
from xlm.harness import Harness
from xlm.optim import JointOptimizer
from xlm.protocols import WithAuxiliary
from xlm.weights import export_weights, load_into, load_weights

pytestmark = pytest.mark.filterwarnings("ignore")


def sgd(network):
    return SGD(network.parameters(), lr=0.3, momentum=0.9)


WITH_SGD = partial(CriticLoss, auxiliary_optimizer=sgd)
MAKERS = {"sgd": (WITH_SGD, sgd), "the model's": (CriticLoss, lambda network: AdamW(network.parameters(), lr=0.1))}


def critic(harness):
    return harness.auxiliary.weight.detach().clone()


def bare_loop(make, *, steps=3, clip_norm=None):
    """Two networks, two optimizers, two schedules, clipped apart: (weights of the model, the other's)."""
    model = ToyModel()
    loss = CriticLoss(model)
    loss.configure(torch.zeros(()))
    networks = [model, loss.auxiliary]
    optimizers = [AdamW(model.parameters(), lr=0.1), make(loss.auxiliary)]
    schedules = [schedule(optimizer, steps) for optimizer in optimizers]
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.loss_fn(batch_of_step(step))["loss"].backward()
        for network, optimizer, scheduler in zip(networks, optimizers, schedules, strict=True):
            if clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimizer.step()
            scheduler.step()
    return list(model.parameters()), loss.auxiliary.weight


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("name", MAKERS)
def test_both_networks_take_the_steps_of_two_bare_optimizers(tmp_path, name, accumulate):
    loss, make = MAKERS[name]
    _, harness, _ = train(tmp_path, loss=loss, accumulate=accumulate, **EXACT)
    model, other = bare_loop(make)
    assert_close(weights(harness), model, rtol=1e-12, atol=1e-12)
    assert_close(critic(harness), other.detach(), rtol=1e-12, atol=1e-12)


def test_each_network_is_clipped_by_its_own_norm_and_the_norm_of_both_is_logged(tmp_path):
    _, harness, _ = train(tmp_path, loss=WITH_SGD, **{**EXACT, "clip_norm": 0.05})
    model, other = bare_loop(sgd, clip_norm=0.05)
    assert_close(weights(harness), model, rtol=1e-5, atol=1e-6)
    assert_close(critic(harness), other.detach(), rtol=1e-5, atol=1e-6)
    _, first, _ = train(tmp_path / "first", loss=WITH_SGD, **{**EXACT, "steps": 1})
    loss = CriticLoss(ToyModel())
    loss.configure(torch.zeros(()))
    loss.loss_fn(batch_of_step(0))["loss"].backward()
    gradients = [p.grad for p in (*loss.model.parameters(), loss.auxiliary.weight)]
    assert first.metrics["train/grad_norm"] == pytest.approx(float(nn.utils.get_total_norm(gradients)))
    assert first.metrics["auxiliary_parameters"] == 8


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_that_stopped_goes_on_to_the_bit(tmp_path, name):
    loss, options = MAKERS[name][0], {"steps": 9, "every": 2, "validate": 3, "accumulate": 2}
    train(tmp_path / "straight", loss=loss, **options)

    def die(trainer):
        if trainer.global_step == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "killed", loss=loss, callbacks=[Hook("on_train_batch_start", die)], **options)
    _, resumed, _ = train(tmp_path / "killed", loss=loss, **options)
    assert resumed.loss.seen
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "straight")


def test_the_second_network_is_averaged_like_the_model(tmp_path):
    _, harness, _ = train(tmp_path, loss=WITH_SGD, steps=3, ema=0.9)
    newest = newest_valid(tmp_path / "checkpoints")
    ema, raw = (load_weights(newest, kind).auxiliary["weight"] for kind in ("ema", "raw"))
    assert not torch.equal(ema, raw)
    assert_close(critic(harness), ema, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_exported_files_restore_both_networks(tmp_path, kind):
    train(tmp_path, loss=WITH_SGD, steps=2)
    newest = newest_valid(tmp_path / "checkpoints")
    names = {"model", "model_auxiliary", "model_ema", "model_ema_auxiliary"}
    (tmp_path / "files").mkdir()
    export_weights(newest, tmp_path / "files")
    assert {path.stem for path in (tmp_path / "files").iterdir()} == names
    wanted, found = load_weights(newest, kind), load_weights(tmp_path / "files", kind)
    assert_close(found.tensors, wanted.tensors, rtol=0, atol=0)
    assert_close(found.auxiliary, wanted.auxiliary, rtol=0, atol=0)
    loss = CriticLoss(ToyModel())
    load_into(loss.model, found, auxiliary=loss.auxiliary)
    assert_close(loss.auxiliary.weight.detach(), wanted.auxiliary["weight"], rtol=0, atol=0)


def test_weights_without_the_second_network_are_refused_by_a_loss_that_has_one(tmp_path):
    train(tmp_path, steps=2)
    found = load_weights(newest_valid(tmp_path / "checkpoints"))
    assert found.auxiliary == {}
    loss = CriticLoss(ToyModel())
    with pytest.raises(UserError, match=r"no weights of the loss's own network .*keep model_auxiliary\.safetensors"):
        load_into(loss.model, found, auxiliary=loss.auxiliary)
    found.auxiliary["weights"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"auxiliary\.weight is missing \(the file has auxiliary\.weights\)"):
        load_into(loss.model, found, auxiliary=loss.auxiliary)
    trainer, harness, data = make_run(tmp_path, steps=4, loss=CriticLoss)
    with pytest.raises(UserError, match=r"auxiliary\.weight is missing"):
        trainer.fit(harness, datamodule=data, ckpt_path=found.source)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_step_may_leave_the_second_network_out(tmp_path, clip_norm):
    class EverySecondStep(CriticLoss):
        calls = 0

        def loss_fn(self, batch):
            self.calls += self.model.training
            return super().loss_fn(batch) if self.calls % 2 else ToyLoss.loss_fn(self, batch)

    seen = []
    note = Hook("on_train_batch_end", lambda t: seen.append(critic(t.lightning_module)))
    loss = partial(EverySecondStep, auxiliary_optimizer=sgd)
    train(tmp_path, loss=loss, callbacks=[note], **{**EXACT, "clip_norm": clip_norm, "steps": 3})
    assert [bool((before != after).any()) for before, after in pairwise(seen)] == [False, True]


@pytest.mark.parametrize("network", [None, nn.Parameter(torch.zeros(2))])
def test_a_loss_with_an_optimizer_for_no_network_is_refused(tmp_path, network):
    class Bare(ToyLoss):
        auxiliary_optimizer, auxiliary = None, network

    with pytest.raises(UserError, match=r"Bare has auxiliary_optimizer, but its auxiliary is no torch\.nn\.Module"):
        make_run(tmp_path, loss=Bare)


def test_a_parameter_of_both_networks_is_refused(tmp_path):
    class Sharing(CriticLoss):
        def __init__(self, model, **more):
            super().__init__(model, **more)
            self.auxiliary = nn.ModuleDict({"words": model.embed})

    with pytest.raises(UserError, match=r"shares parameters with the model in loss \(words\.weight\)"):
        make_run(tmp_path, loss=Sharing)


def test_a_loss_that_is_a_module_may_hold_its_network_as_a_submodule():
    class ModuleLoss(nn.Module):
        auxiliary_optimizer = None

        def __init__(self, model):
            super().__init__()
            self.model, self.tokenizer, self.auxiliary = model, None, nn.Linear(2, 1)

        def loss_fn(self, batch):
            return {}

    loss = ModuleLoss(ToyModel())
    assert isinstance(loss, WithAuxiliary)
    assert not isinstance(ToyLoss(loss.model), WithAuxiliary)
    harness = Harness(model=loss.model, loss=loss, predictor=None, tokenizer=range(8), optimizer=sgd)
    assert {name.partition(".")[0] for name, _ in harness.named_parameters()} == {"model", "auxiliary"}


def test_a_joint_optimizer_passes_on_what_a_fused_step_is_told():
    networks = [nn.Linear(2, 2), nn.Linear(2, 1)]
    joint = JointOptimizer([AdamW(network.parameters(), lr=1.0, fused=True) for network in networks])
    before = [parameter.detach().clone() for network in networks for parameter in network.parameters()]
    for network in networks:
        network(torch.ones(1, 2)).sum().backward()
    joint.found_inf = torch.ones(())
    joint.step()
    after = [parameter.detach() for network in networks for parameter in network.parameters()]
    assert_close(after, before, rtol=0, atol=0)
    joint.found_inf = torch.zeros(())
    joint.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_joint_optimizer_keeps_the_state_that_its_parts_began_with():
    network = nn.Linear(2, 1)
    alone = torch.optim.Adagrad(network.parameters(), initial_accumulator_value=3.0)
    wanted = alone.state[network.weight]["sum"]
    assert JointOptimizer([alone]).state[network.weight]["sum"] is wanted


def test_a_joint_optimizer_calls_its_closure_once_with_gradients():
    network = nn.Linear(2, 1)
    joint, calls = JointOptimizer([sgd(network)]), []

    def closure():
        calls.append(torch.is_grad_enabled())
        network(torch.ones(1, 2)).sum().backward()
        return 7.0

    before = network.weight.detach().clone()
    assert joint.step(closure) == 7.0
    assert calls == [True]
    assert_close(network.weight.detach(), before - 0.3, rtol=0, atol=1e-7)
