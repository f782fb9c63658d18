"""The contracts of a language model family: Model, LossFunction, Predictor, Collator, and what they may ask for.

A family implements these four and nothing else; the harness, the data module and the commands speak to them through
this page alone. Shapes are jaxtyping's: ``batch`` rows, ``seq`` positions, ``vocab`` tokens, ``d_model`` features.
Logarithms are natural: every likelihood is in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Kind = Literal["exact", "bound", "pseudo", "estimate"]
"""What a likelihood is: the value itself, an upper bound on -log p, a pseudo-likelihood, or an estimate of neither."""

EventSpace = Literal["window", "open", "given_length"]
"""What a likelihood is the probability of; numbers are comparable within one event space only.

``window``: a window of N tokens given N. ``open``: a text and its end, of any length. ``given_length``: a text whose
length an attention mask reveals.
"""

Example = dict[str, Any]
"""One row of a data set as a collator receives it: its columns, and ``index``, ``position`` and ``noise_key``."""

T_in = TypeVar("T_in", bound=Mapping[str, object], contravariant=True)
T_out = TypeVar("T_out", bound=Mapping[str, object], covariant=True)
T_pred = TypeVar("T_pred", bound=Mapping[str, object])


class LossDict(TypedDict):
    """What a loss returns. Further scalar values are logged under their names."""

    loss: Float[Tensor, ""]
    """What is minimised; a mean in nats over ``loss_denominator`` things."""
    loss_denominator: NotRequired[Float[Tensor, ""] | Int[Tensor, ""]]
    """What ``loss`` was divided by, e.g. real tokens; makes the gradient that of the global mean."""
    nll: NotRequired[Float[Tensor, " batch"]]
    """-log p of each sequence, nats: a one-draw estimate, unless the loss says what it is by an attribute
    ``nll_kind``."""
    n_tokens: NotRequired[Int[Tensor, " batch"]]
    """Denominator of ``nll``: predicted real tokens of each sequence."""
    masked_nll: NotRequired[Float[Tensor, " batch"]]
    """Sum of the unweighted cross-entropies of each sequence's hidden tokens, nats. With ``n_masked``, and
    ``mask_rate`` in the batch, evaluations report the mean by mask rate."""
    n_masked: NotRequired[Int[Tensor, " batch"]]
    """Hidden tokens of each sequence."""


class SequenceLikelihood(TypedDict):
    """The likelihood of each sequence of a batch, as ``Predictor.log_likelihood`` returns it."""

    nll: Float[Tensor, " batch"]
    """-log p (or its bound) of each sequence, nats, fp64."""
    n_tokens: Int[Tensor, " batch"]
    """Predicted real tokens of each sequence: the denominator of nats per token."""
    kind: Kind
    estimator: str
    """Name of the estimator, for the table."""
    n_calls: int
    """Network calls spent on one sequence."""
    mc_variance: NotRequired[Float[Tensor, " batch"]]
    """Variance of the Monte-Carlo error of each ``nll``, nats squared; absent where nothing was drawn."""


class Predictions(TypedDict):
    """What ``Predictor.predict`` returns."""

    ids: Int[Tensor, "batch seq"]
    """The answer of each row, right-padded: what follows the prompt, the whole text, or the filled template."""
    lengths: Int[Tensor, " batch"]
    """Valid tokens of each row, end-of-text excluded."""
    n_calls: Int[Tensor, " batch"]
    """Network calls in which the row took part."""
    trace: NotRequired[list[dict[str, Any]]]
    """Events of ``xlm.trace``, where asked for."""


@runtime_checkable
class Tokenizer(Protocol):
    """What a part may ask of a tokenizer; every ``PreTrainedTokenizerFast`` is one."""

    if TYPE_CHECKING:  # transformers computes them when asked, which isinstance does not see from Python 3.12 on
        pad_token_id: int | None
        mask_token_id: int | None
        bos_token_id: int | None
        eos_token_id: int | None

    def __len__(self) -> int:
        """Number of ids, control tokens included."""
        ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> Any:
        """Text of a list of ids."""
        ...


@runtime_checkable
class NoiseSchedule(Protocol):
    """How fast a diffusion process hides tokens: t = 0 is clean, t = 1 most hidden; u = 1 - alpha is the mask rate."""

    full_range: bool
    """Whether u runs over all of (0, 1]; otherwise a loss under this schedule is an estimate, not a bound."""

    def mask_rate(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u(t), the probability that a token is hidden at time t."""
        ...

    def mask_rate_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """du/dt."""
        ...

    def elbo_weight(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u'(t) / u(t), the weight of a hidden token's cross-entropy in the bound."""
        ...


@runtime_checkable
class Harness(Protocol):
    """What a part may ask of the harness that runs it."""

    seed: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...


@runtime_checkable
class Model(Protocol):
    """The bare network. ``forward`` is ``head(hidden(...))``; losses and samplers run ``head`` on rows they need."""

    if TYPE_CHECKING:  # a submodule, which isinstance does not see from Python 3.12 on
        head: Any
        """A bias-free ``torch.nn.Linear`` from ``d_model`` to ``vocab``; ``head.weight`` feeds the chunked loss."""

    def hidden(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch seq d_model"]:
        """States from which ``head`` computes logits."""
        ...

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits at every position."""
        ...


@runtime_checkable
class LossFunction(Protocol[T_in, T_out]):
    """The training objective of a family.

    Examples:
        >>> import torch
        >>> class MeanLoss:
        ...     def __init__(self, model, tokenizer):
        ...         self.model, self.tokenizer = model, tokenizer
        ...     def loss_fn(self, batch):
        ...         return {"loss": batch["x"].mean(), "loss_denominator": torch.tensor(batch["x"].numel())}
        >>> MeanLoss(None, None).loss_fn({"x": torch.tensor([1.0, 3.0])})["loss"].item()
        2.0
    """

    model: Any
    tokenizer: Any

    def loss_fn(self, batch: T_in) -> T_out:
        """A ``LossDict``. Compile-friendly; the batch is only read."""
        ...


@runtime_checkable
class Configurable(Protocol):
    """A loss that turns its constants into tensors once the device is known."""

    def configure(self, pl_module: Harness) -> None:
        """Called once, before the first step, with the model on its device."""
        ...


@runtime_checkable
class WithAuxiliary(Protocol):
    """A loss that trains a second network beside the model: a critic, a planner, a learned noise schedule.

    One ``loss``, one backward pass; each network takes the steps of its own optimizer, under the run's one schedule,
    and is clipped by its own norm. A step may leave the second one out (on several devices with
    ``strategy=ddp strategy.find_unused_parameters=true``). It is saved, averaged and restored with the model, for
    whoever evaluates the loss. What a predictor needs, too, belongs into the model.
    """

    if TYPE_CHECKING:  # a submodule where the loss is a module, which isinstance does not see from Python 3.12 on
        auxiliary: torch.nn.Module
        """Made by the loss's constructor, of parameters of its own."""

    @property
    def auxiliary_optimizer(self) -> Callable[[torch.nn.Module], torch.optim.Optimizer] | None:
        """Makes its optimizer; None makes one as the model's."""
        ...


@runtime_checkable
class Checking(Protocol):
    """A predictor whose options do not fit every batch."""

    def check(self, batch: Any) -> None:
        """Refuse a prediction batch that they do not fit, before any work; shown one of every role that a run has.

        Raises:
            UserError: naming the option.
        """
        ...


@runtime_checkable
class Predictor(Protocol[T_in, T_pred]):
    """Samples from a model and measures likelihoods under it."""

    model: Any
    tokenizer: Any

    @property
    def noise_schedule(self) -> NoiseSchedule | None:
        """The schedule of the reverse process; None for families without one."""
        ...

    def predict(self, batch: T_in) -> T_pred:
        """``Predictions`` for prompts of unequal length; a row does not depend on which rows share its batch."""
        ...

    def to_dict(self, batch: T_in, preds: T_pred) -> list[dict[str, Any]]:
        """JSON-ready rows: ``index``, ``prompt``, ``prediction`` (text), ``ids``, ``n_calls``."""
        ...

    def log_likelihood(self, batch: Any, *, draws: int = 1) -> SequenceLikelihood:
        """Likelihood of each sequence of a loss batch; ``draws`` draws a sequence where the estimator draws."""
        ...


@runtime_checkable
class Collator(Protocol):
    """Examples in, batch out, without a prompt (roles ``lm``, ``infill``, ``infill_prediction``, ``unconditional``).

    Every batch has ``index`` and ``noise_key`` (int64, one a row). A row's randomness comes from its own ``noise_key``.
    """

    event_space: EventSpace

    def __call__(self, examples: list[Example]) -> Mapping[str, Any]:
        """Build one batch; columns that the collator does not know are ignored."""
        ...


@runtime_checkable
class Seq2SeqCollator(Collator, Protocol):
    """As ``Collator``, for examples with ``prompt_ids`` and ``target_ids`` (role ``seq2seq``)."""


@runtime_checkable
class Seq2SeqCollatorPrediction(Collator, Protocol):
    """As ``Collator``, for ``prompt_ids`` (role ``seq2seq_prediction``); the target is never in the batch."""
