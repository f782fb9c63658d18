"""The LightningModule that runs any family: steps, optimizer, what is logged; nothing that a family or a task knows.

To Lightning a whole run is one epoch; steps are optimizer steps everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from xlm.errors import UserError
from xlm.evaluation import Evaluation, LossEvaluation, PredictionEvaluation
from xlm.noise import Stream, noise_key
from xlm.optim import JointOptimizer, global_norm
from xlm.ranks import gather
from xlm.resume import recount, require_resumable
from xlm.weights import Kind, auxiliary_of, require_match
from xlm.window import NonFiniteError, Verdict, Window

MakeOptimizer = Callable[[nn.Module], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]


class Harness(pl.LightningModule):
    """Trains and evaluates the four parts of a family.

    Args:
        model: The bare network.
        loss: Its training objective, with a second network where it is ``WithAuxiliary``.
        predictor: Its sampler, and the owner of its likelihood.
        tokenizer: Of the run.
        optimizer: Makes the optimizer of a model.
        lr_scheduler: Makes the schedule of an optimizer over a number of steps; None keeps the learning rate.
        seed: Of everything random in the run.
        clip_norm: Greatest norm of the gradient; None does not clip.
        compile: Whether training runs the loss through ``torch.compile``.
        likelihood_draws: Monte-Carlo draws a sequence in likelihoods; validations during training take the loss's one.
        log_samples: Predictions of each data set that are kept for showing.
    """

    loss: Any
    predictor: Any

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: Any,
        predictor: Any,
        tokenizer: Any,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeSchedule | None = None,
        seed: int = 0,
        clip_norm: float | None = 1.0,
        compile: bool = False,
        likelihood_draws: int = 1,
        log_samples: int = 2,
    ) -> None:
        super().__init__()
        _require(clip_norm is None or clip_norm > 0, "must be positive, or null", "harness.clip_norm", clip_norm)
        _require(likelihood_draws >= 1, "must be at least 1", "harness.likelihood_draws", likelihood_draws)
        _require(log_samples >= 0, "must not be negative", "harness.log_samples", log_samples)
        self.model, self.tokenizer = model, tokenizer
        # Not as submodules: both hold the model, whose parameters must appear once.
        self.__dict__.update(loss=loss, predictor=predictor)
        self.make_optimizer, self.make_schedule = optimizer, lr_scheduler
        self.seed, self.clip_norm, self.compile_loss = seed, clip_norm, compile
        self.likelihood_draws, self.log_samples = likelihood_draws, log_samples
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.auxiliary = auxiliary_of(loss)
        _require_apart(model, self.auxiliary)

        self.results: dict[str, dict[str, Any]] = {}
        """Final numbers of every evaluated data set, by ``<split>.<name>``."""
        self.samples: dict[str, list[dict[str, Any]]] = {}
        """The first predictions of every data set, by ``<split>.<name>``."""
        self.metrics: dict[str, float | int] = {}
        """The newest value of everything logged."""
        self.weights: Kind = "raw"
        """Which weights the model holds: the callback that averages them says so here."""
        self.stop_requested = False
        """Set by a signal handler on one rank; ``stop_agreed`` is the answer of all."""
        self.stop_agreed = False
        self.tokens: Float[Tensor, ""] = torch.zeros((), dtype=torch.float64)
        """Of the run so far, over all ranks: real tokens, ``n_tokens`` of the batches, or else loss denominators."""

        self._window = Window()
        self._verdict: Verdict | None = None
        self._row: dict[str, float] = {}
        self._lr = 0.0
        self._logged = -1
        self._train_loss: Callable[[Any], Mapping[str, Any]] = loss.loss_fn
        self._evaluations: list[Evaluation] = []

    # Set-up

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule stepped after every optimizer step."""
        optimizer = self.build_optimizer()
        if self.make_schedule is None:
            return optimizer
        steps = self.trainer.max_steps
        _require(steps >= 0, "a learning-rate schedule needs to know its end", "trainer.max_steps", steps)
        return [optimizer], [{"scheduler": self.make_schedule(optimizer, steps), "interval": "step"}]

    def build_optimizer(self) -> Optimizer:
        """The model's, or the two of the model and of the loss's own network as one."""
        optimizer = self.make_optimizer(self.model)
        if self.auxiliary is None:
            return optimizer
        make = self.loss.auxiliary_optimizer or self.make_optimizer
        return JointOptimizer([optimizer, make(self.auxiliary)])

    def _configure_loss(self) -> None:
        if hasattr(self.loss, "configure"):
            self.loss.configure(self)

    def on_fit_start(self) -> None:
        """Everything is on its device now."""
        _require(
            self.trainer.gradient_clip_val is None,
            "gradients are clipped by the harness",
            "trainer.gradient_clip_val",
            self.trainer.gradient_clip_val,
            fix="set harness.clip_norm instead",
        )
        self._configure_loss()
        self._train_loss = torch.compile(self.loss.loss_fn) if self.compile_loss else self.loss.loss_fn
        self.tokens = self.tokens.to(self.device)
        self._window, self._verdict, self._logged = Window(), None, -1
        self.stop_requested = self.stop_agreed = False

    def on_train_start(self) -> None:
        """Keep validation out of accumulation windows, whatever interval was asked for."""
        parts = self.trainer.accumulate_grad_batches
        if isinstance(self.trainer.val_check_batch, int):
            self.trainer.val_check_batch = math.ceil(self.trainer.val_check_batch / parts) * parts
        if self.trainer.global_step == 0:
            self.record({"parameters": self.n_parameters, **self._auxiliary_size()})

    def _auxiliary_size(self) -> dict[str, int]:
        network = self.auxiliary
        return {} if network is None else {"auxiliary_parameters": sum(p.numel() for p in network.parameters())}

    # Training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """What Lightning differentiates: the loss, or its sum under accumulation and several ranks."""
        self._reseed_dropout(batch_idx)
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return self._window.add(self._train_loss(batch), batch, parts=parts)

    def _reseed_dropout(self, batch_idx: int) -> None:
        """The only user of the global generator. So a resumed run drops what the straight one would have."""
        parts = self.trainer.accumulate_grad_batches
        micro_batch = self.trainer.global_step * parts + batch_idx % parts
        place = micro_batch * self.trainer.world_size + self.trainer.global_rank
        key = noise_key(self.seed, Stream.DROPOUT, place)
        torch.default_generator.manual_seed(key)  # torch.manual_seed asks every kind of device: 2 ms
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)
        elif self.device.type == "mps":
            torch.mps.manual_seed(key)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Make the gradient that of the global mean, clip it, and refuse it unless it is finite."""
        sums = self._sums_over_ranks()
        networks = optimizer.parts if isinstance(optimizer, JointOptimizer) else [optimizer]
        trained = [parameters for network in networks if (parameters := _with_gradients(network))]
        norms = [self._scale_and_clip(parameters, denominator=sums[1]) for parameters in trained]
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        self._submit(Verdict(self.trainer.global_step + 1, self._window, norm, sums), optimizer)
        self._lr, self._window = optimizer.param_groups[0]["lr"], Window()

    def _scale_and_clip(
        self, parameters: Sequence[nn.Parameter], *, denominator: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Norm, before it is clipped, of the gradient of one network.

        Lightning and DDP averaged over micro-batches and ranks the gradients of sums: times their number, divided by
        the denominators of all, that is the gradient of the mean over all of them, however they were split.
        """
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        norm = global_norm(parameters)
        factor = torch.ones_like(norm) if parts == 1 else torch.where(denominator > 0, parts / denominator, 0).to(norm)
        norm = norm * factor
        if self.clip_norm is not None:
            factor = factor * (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        if parts > 1 or self.clip_norm is not None:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
        return norm

    def _sums_over_ranks(self) -> Float[Tensor, " sums"]:
        """The window's sums and the number of ranks asked to stop, over all ranks: one collective a step."""
        sums = self._window.sums(stop=self.stop_requested)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.tokens += sums[2]
        return sums

    def _submit(self, verdict: Verdict, optimizer: Optimizer) -> None:
        """Judge a step before the optimizer takes it.

        A GPU is not waited for: the fused optimizer skips the step by itself when told that it is bad, and the host
        learns of it one step later.
        """
        if self._may_defer(optimizer):
            optimizer.found_inf = (~verdict.finite).float()  # type: ignore[attr-defined]  # torch's own door for scalers
            self.settle()
            self._verdict = verdict
        else:
            self._judge(verdict)

    def _may_defer(self, optimizer: Optimizer) -> bool:
        return self.device.type == "cuda" and all(group.get("fused") for group in optimizer.param_groups)

    def settle(self) -> None:
        """Wait for the judgement of the last step. Nothing may be saved or evaluated before it."""
        verdict, self._verdict = self._verdict, None
        if verdict is not None:
            self._judge(verdict)

    def _judge(self, verdict: Verdict) -> None:
        norm, loss, denominator, _, stop, *extra = verdict.read()
        if not (math.isfinite(norm) and math.isfinite(loss)):
            raise NonFiniteError(self._diagnose(verdict))
        self.stop_agreed = stop > 0
        denominator = denominator or 1.0  # nothing was predicted, nothing is lost
        self._row = {"train/loss": loss / denominator, "train/grad_norm": norm}
        self._row |= {
            f"train/{name}": value / denominator for name, value in zip(verdict.window.names, extra, strict=True)
        }

    def _diagnose(self, verdict: Verdict) -> str:
        """Every rank comes here in the same step, so all may be asked."""
        mine = (self.global_rank, verdict.window.loss_is_finite(), verdict.window.suspects())
        ranks = gather(mine)
        guilty = [rank for rank in ranks if not rank[1]] or ranks
        what = "the gradient" if all(finite for _, finite, _ in ranks) else "the loss"
        where = "; ".join(f"rank {rank}, samples {_some(indices)}" for rank, _, indices in guilty)
        return (
            f"{what} is not finite at step {verdict.step} ({where}); the weights are those of step {verdict.step - 1}; "
            "fix: lower optimizer.lr, or look at these samples"
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log a step now and then, and have Lightning validate once more after the last one."""
        self.log_step()
        if self.between_steps and self.trainer.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """The last step is judged like any other."""
        self.settle()

    @property
    def between_steps(self) -> bool:
        """Whether no micro-batch waits for its optimizer step."""
        return not self._window.micro_batches

    @property
    def is_log_step(self) -> bool:
        """Whether the step just taken is one whose numbers are written."""
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.between_steps and (step % every == 0 or step == self.trainer.max_steps)

    def log_step(self) -> None:
        """Record the last step, once, if it is one to be recorded. Whoever saves it records it first."""
        if self.is_log_step and self._logged != self.trainer.global_step:
            self._logged = self.trainer.global_step
            self.record(self.step_metrics())

    def step_metrics(self) -> dict[str, float]:
        """Loss, its further values, gradient norm and learning rate of the last step. Waits for the device."""
        self.settle()
        return {**self._row, "train/lr": self._lr}

    def record(self, row: Mapping[str, float | int]) -> None:
        """Give numbers to every logger, under the step they belong to."""
        self.metrics.update(row)
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(row), step=self.trainer.global_step)

    # Evaluation: validation, test and predict are one thing, over the data sets of their split

    def _begin(self, split: str) -> None:
        self.settle()
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._configure_loss()
        managers = self.trainer.datamodule.managers(split)  # type: ignore[attr-defined]
        self._evaluations = [self._evaluation(split, manager) for manager in managers]
        self._evaluated = self.weights  # an average leaves the module again before the results are in

    def _evaluation(self, split: str, manager: Any) -> Evaluation:
        name = f"{split}.{manager.name}"
        if manager.kind == "loss":
            draws = None if self.trainer.state.fn == TrainerFn.FITTING else self.likelihood_draws
            return LossEvaluation(name, manager, loss=self.loss, predictor=self.predictor, draws=draws)
        return PredictionEvaluation(
            name,
            manager,
            predictor=self.predictor,
            folder=self.trainer.default_root_dir,
            rank=self.global_rank,
            device=self.device,
            n_samples=self.log_samples,
        )

    def _finish(self) -> None:
        for evaluation in self._evaluations:
            values = evaluation.compute()
            if self.trainer.sanity_checking:
                continue
            self.results[evaluation.name] = {**values, "weights": self._evaluated, "step": self.trainer.global_step}
            if isinstance(evaluation, PredictionEvaluation):
                self.samples[evaluation.name] = evaluation.samples
            self._publish(evaluation.name.replace(".", "/", 1), values)
        self._evaluations = []

    def _publish(self, prefix: str, values: Mapping[str, Any]) -> None:
        row = {f"{prefix}/{key}": float(v) for key, v in _flat(values) if isinstance(v, (int, float))}
        self.record(row)
        if self.trainer.validating:  # where callbacks such as early stopping look; equal on all ranks
            self.log_dict(row, logger=False, reduce_fx="max", sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Begin a validation."""
        self._begin("val")

    def on_test_epoch_start(self) -> None:
        """Begin a test."""
        self._begin("test")

    def on_predict_epoch_start(self) -> None:
        """Begin predictions."""
        self._begin("predict")

    def _evaluate(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluations[dataloader_idx].update(batch)

    validation_step = test_step = _evaluate

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> tuple[()]:
        """As the others; Lightning warns of None."""
        self._evaluate(batch, batch_idx, dataloader_idx)
        return ()

    on_validation_epoch_end = on_test_epoch_end = on_predict_epoch_end = _finish

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the loops and callbacks do not hold; never save a step that is not known to be finite."""
        self.settle()
        checkpoint["xlm"] = {
            "vocab_size": len(self.tokenizer),
            "tokens": float(self.tokens),
            "accumulate": self.trainer.accumulate_grad_batches,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare a checkpoint with this run before anything of it is used."""
        source = str(self.trainer.ckpt_path)
        known = checkpoint["xlm"]["vocab_size"]
        _require(
            known == len(self.tokenizer),
            f"the checkpoint knows {known} tokens, the tokenizer {len(self.tokenizer)}",
            source,
            fix="use the tokenizer of that run",
        )
        require_match(_named(checkpoint["state_dict"]), _named(self.state_dict()), source)
        if self.trainer.state.fn == TrainerFn.FITTING:
            callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
            require_resumable(checkpoint, source, averages=any(isinstance(c, WeightAveraging) for c in callbacks))
            recount(checkpoint, self.trainer.accumulate_grad_batches)
        self.tokens = torch.tensor(checkpoint["xlm"]["tokens"], dtype=self.tokens.dtype)


def harness_of(trainer: pl.Trainer) -> Harness:
    """The harness that a trainer runs, for callbacks."""
    module = trainer.lightning_module
    assert isinstance(module, Harness), f"xlm's callbacks watch a Harness, not a {type(module).__name__}"
    return module


def _with_gradients(optimizer: Optimizer) -> list[nn.Parameter]:
    """What a step trains: a loss may leave its own network out of some."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Numbers by name; those with parts under ``<name>/<part>``."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{part}", number) for part, number in value.items())
        else:
            yield key, value


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters as a person knows them: those of the model by their own names."""
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def _require_apart(model: nn.Module, auxiliary: nn.Module | None) -> None:
    """A parameter of both networks would be stepped twice."""
    own = {id(parameter) for parameter in model.parameters()}
    shared = [name for name, p in auxiliary.named_parameters() if id(p) in own] if auxiliary is not None else []
    fix = "give the auxiliary network parameters of its own, and call the model from loss_fn"
    _require(not shared, "the auxiliary network shares parameters with the model", "loss", ", ".join(shared), fix)


def _require(holds: bool, what: str, where: str, value: object = None, fix: str = "choose another value") -> None:
    if not holds:
        raise UserError(what, where=where, value=value, fix=fix)


def _some(indices: list[int], most: int = 20) -> str:
    return ", ".join(map(str, indices[:most])) + (f" and {len(indices) - most} more" if len(indices) > most else "")
