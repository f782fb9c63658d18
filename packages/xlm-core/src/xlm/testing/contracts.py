"""What every family must keep, as test classes: subclass one, say how to build the part, and it is checked.

```python
from xlm.testing.contracts import CollatorContract
from xlm.testing.factories import lm_examples, tiny_tokenizer


class TestMyCollator(CollatorContract):
    def collator(self):
        return MyCollator(tokenizer=tiny_tokenizer(), max_length=16)

    def examples(self):
        return lm_examples([3, 7, 5])
```
"""

from __future__ import annotations

import copy
import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor, nn

from xlm.errors import UserError
from xlm.protocols import Collator, EventSpace, Example, Kind, Model
from xlm.sampling import suppressed_ids
from xlm.testing.gradients import finite_difference_check
from xlm.testing.oracles import OracleCase, same
from xlm.trace import replay

TEXT_COLUMNS = ("input_ids", "fixed", "segments", "prompt_ids", "target_ids")


@contextmanager
def reads_only(value: Any) -> Iterator[None]:
    """Fails if the value is changed inside the block, or if a global generator is drawn from there."""
    before, state = copy.deepcopy(value), torch.get_rng_state()
    yield
    assert same(before, value), "the input was changed"
    assert torch.equal(state, torch.get_rng_state()), "numbers were drawn from torch's global generator"


class CollatorContract(ABC):
    """A collator of any role."""

    flat: ClassVar[tuple[str, ...]] = ("rows",)
    """Entries of a batch that index the flattened batch, and so do not belong to one row."""

    @abstractmethod
    def collator(self) -> Collator:
        """The collator."""

    @abstractmethod
    def examples(self) -> list[Example]:
        """Three or more examples of its role, of unequal lengths where the role allows that."""

    def test_examples_are_only_read_and_no_global_generator_is_used(self) -> None:
        """Workers and resume would change the data otherwise."""
        collate, examples = self.collator(), self.examples()
        with reads_only(examples):
            collate(examples)

    def test_the_same_examples_give_the_same_batch(self) -> None:
        """Nothing is remembered from batch to batch."""
        collate, examples = self.collator(), self.examples()
        first = collate(examples)
        collate(examples[::-1])
        assert same(first, collate(examples))

    def test_every_row_carries_its_keys(self) -> None:
        """The harness and the samplers find rows by them."""
        examples = self.examples()
        batch = self.collator()(examples)
        for name in ("index", "noise_key"):
            assert batch[name].dtype == torch.int64
            assert batch[name].tolist() == [example[name] for example in examples], name

    def test_a_row_does_not_depend_on_its_batch(self) -> None:
        """Up to padding a row is what it is alone, its noise included."""
        collate, examples = self.collator(), self.examples()
        batch = collate(examples)
        for i, example in enumerate(examples):
            alone = collate([example])
            names = [name for name in batch if name not in self.flat and isinstance(batch[name], Tensor)]
            _assert_row({name: (batch[name][i], alone[name][0]) for name in names if alone[name] is not None})

    def test_columns_it_does_not_know_are_ignored(self) -> None:
        """Data sets have columns of their own."""
        collate, examples = self.collator(), self.examples()
        extended = [{**example, "a_column_of_the_task": "text"} for example in examples]
        assert same(collate(examples), collate(extended))

    def test_a_row_that_is_too_long_names_the_key_to_change(self) -> None:
        """Nothing is cut silently."""
        example = self.examples()[0]
        longer = {name: list(example[name]) * 1000 for name in TEXT_COLUMNS if name in example}
        if not longer:
            pytest.skip("the role has no text")
        with pytest.raises(UserError, match=r"max_\w*length"):
            self.collator()([{**example, **longer}])

    def test_it_says_its_event_space_and_travels_to_workers(self) -> None:
        """Likelihoods are labelled with the event space; workers receive the collator by pickle."""
        collate, examples = self.collator(), self.examples()
        assert collate.event_space in get_args(EventSpace)
        assert same(collate(examples), pickle.loads(pickle.dumps(collate))(examples))


class PredictionCollatorContract(CollatorContract):
    """A collator of the role ``seq2seq_prediction`` or ``infill_prediction``."""

    def test_the_batch_does_not_depend_on_the_answer(self) -> None:
        """Neither its tokens nor, for a target, its length."""
        collate, examples = self.collator(), self.examples()
        assert same(collate(examples), collate([_with_another_answer(example) for example in examples]))


def _with_another_answer(example: Example) -> Example:
    if "target_ids" in example:
        return {**example, "target_ids": [*list(example["target_ids"])[1:], *example["prompt_ids"]]}
    rows = zip(example["input_ids"], example["fixed"], strict=True)
    other = {token: example["input_ids"][i - 1] for i, token in enumerate(example["input_ids"])}
    return {**example, "input_ids": [token if given else other[token] for token, given in rows]}


def _assert_row(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Each second is a stretch of its first, and those of equal widths stand at one place."""
    places: dict[tuple[int, int], set[int]] = {}
    for name, (row, alone) in pairs.items():
        if row.ndim == 0:
            assert torch.equal(row, alone), name
            continue
        width = len(alone)
        found = {at for at in range(len(row) - width + 1) if torch.equal(row[at : at + width], alone)}
        places[len(row), width] = places.get((len(row), width), found) & found
        assert places[len(row), width], f"{name}: {row} does not hold {alone} where the other entries have it"


class LossContract(ABC):
    """A loss, with a model in fp64 (on the CPU, in evaluation mode)."""

    @abstractmethod
    def loss(self) -> Any:
        """The loss (a ``LossFunction``), its model inside."""

    @abstractmethod
    def collator(self) -> Collator:
        """A collator of a role that the loss is trained on."""

    @abstractmethod
    def examples(self) -> list[Example]:
        """Three or more, of unequal lengths where the role allows that."""

    def test_the_batch_is_only_read_and_no_global_generator_is_used(self) -> None:
        """Noise belongs to the collator."""
        loss, batch = self.loss(), self.collator()(self.examples())
        with reads_only(batch):
            loss.loss_fn(batch)

    def test_loss_and_denominator_add_up_over_rows(self) -> None:
        """loss x loss_denominator of a batch is the sum over its rows, however padded: so accumulation is exact."""
        loss, collate, examples = self.loss(), self.collator(), self.examples()
        whole = loss.loss_fn(collate(examples))
        parts = [loss.loss_fn(collate([example])) for example in examples]
        assert whole["loss"].ndim == 0
        assert whole["loss"].requires_grad
        assert float(whole["loss_denominator"]) == sum(float(part["loss_denominator"]) for part in parts)
        total = sum(part["loss"] * part["loss_denominator"] for part in parts)
        torch.testing.assert_close(whole["loss"] * whole["loss_denominator"], total, rtol=1e-9, atol=1e-9)

    def test_nll_of_a_row_does_not_depend_on_its_batch(self) -> None:
        """Nor on padding; not every loss estimates one."""
        loss, collate, examples = self.loss(), self.collator(), self.examples()
        whole = loss.loss_fn(collate(examples))
        if "nll" not in whole:
            pytest.skip("the loss estimates no likelihood")
        parts = [loss.loss_fn(collate([example])) for example in examples]
        assert whole["n_tokens"].tolist() == [int(part["n_tokens"]) for part in parts]
        torch.testing.assert_close(whole["nll"], torch.cat([part["nll"] for part in parts]), rtol=1e-9, atol=1e-9)
        assert not whole["nll"].requires_grad

    def test_the_gradient_is_that_of_the_loss(self) -> None:
        """Compared with finite differences."""
        loss, batch = self.loss(), self.collator()(self.examples())
        finite_difference_check(lambda: loss.loss_fn(batch)["loss"], loss.model.parameters())


class PredictorContract(ABC):
    """A predictor, with a model on the CPU in fp32 or fp64, in evaluation mode."""

    @abstractmethod
    def predictor(self) -> Any:
        """The predictor (a ``Predictor``), its model inside."""

    @abstractmethod
    def collator(self) -> Collator:
        """A collator of a role that ``predict`` serves."""

    @abstractmethod
    def examples(self) -> list[Example]:
        """Three or more, of unequal lengths where the role allows that."""

    @abstractmethod
    def loss_collator(self) -> Collator:
        """A collator of a role that ``log_likelihood`` serves."""

    @abstractmethod
    def loss_examples(self) -> list[Example]:
        """Three or more, of unequal lengths where the role allows that."""

    def test_the_batch_is_only_read_and_no_global_generator_is_used(self) -> None:
        """Randomness comes from the rows' keys."""
        predictor, batch, loss_batch = self.predictor(), self.collator()(self.examples()), self.loss_batch()
        with reads_only([batch, loss_batch]):
            predictor.predict(batch)
            predictor.log_likelihood(loss_batch)

    def loss_batch(self) -> Mapping[str, Any]:
        """The batch of ``loss_examples``."""
        return self.loss_collator()(self.loss_examples())

    def test_a_prediction_does_not_depend_on_its_batch(self) -> None:
        """Ids, lengths and network calls of a row are those that it has alone."""
        predictor, collate, examples = self.predictor(), self.collator(), self.examples()
        batch = predictor.predict(collate(examples))
        for i, example in enumerate(examples):
            alone = predictor.predict(collate([example]))
            length = int(alone["lengths"][0])
            assert int(batch["lengths"][i]) == length
            assert batch["ids"][i, :length].tolist() == alone["ids"][0, :length].tolist()
            assert int(batch["n_calls"][i]) == int(alone["n_calls"][0])

    def test_control_tokens_are_never_generated(self) -> None:
        """Nor anything else that the likelihood removes from the softmax."""
        predictor = self.predictor()
        predictions = predictor.predict(self.collator()(self.examples()))
        valid = torch.arange(predictions["ids"].shape[1]) < predictions["lengths"][:, None]
        assert not torch.isin(predictions["ids"][valid], suppressed_ids(predictor.tokenizer)).any()

    def test_rows_are_json(self) -> None:
        """One dictionary a row, which says what was predicted."""
        predictor, batch = self.predictor(), self.collator()(self.examples())
        predictions = predictor.predict(batch)
        rows = predictor.to_dict(batch, predictions)
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows
        assert [row["index"] for row in rows] == batch["index"].tolist()
        for row, ids, length, n_calls in zip(
            rows, predictions["ids"], predictions["lengths"], predictions["n_calls"], strict=True
        ):
            assert isinstance(row["prompt"], str)
            assert isinstance(row["prediction"], str)
            assert row["ids"] == ids[:length].tolist()
            assert row["n_calls"] == int(n_calls)

    def test_a_trace_leads_to_the_answer(self) -> None:
        """In every row, and asking for it changes nothing; a predictor without the attribute ``trace`` records none."""
        predictor, batch = self.predictor(), self.collator()(self.examples())
        if not hasattr(predictor, "trace"):
            pytest.skip("the predictor records no trace")
        plain = predictor.to_dict(batch, predictor.predict(batch))
        predictor.trace = True
        for row, untraced in zip(predictor.to_dict(batch, predictor.predict(batch)), plain, strict=True):
            assert {name: row[name] for name in untraced} == untraced
            *_, last = replay(row["trace"], row["start_ids"])
            length = len(row["ids"])
            assert row["ids"] in [last[i : i + length] for i in range(len(last) - length + 1)]

    def test_a_likelihood_says_what_it_is(self) -> None:
        """Nats in fp64, over the batch's real tokens."""
        batch = self.loss_batch()
        result = self.predictor().log_likelihood(batch, draws=2)
        assert result["nll"].dtype == torch.float64
        assert (result["nll"] >= 0).all(), "-log of a probability"
        assert result["n_tokens"].tolist() == batch["n_tokens"].tolist()
        assert result["kind"] in get_args(Kind)
        assert result["estimator"]
        assert result["n_calls"] >= 1

    def test_a_likelihood_does_not_depend_on_its_batch(self) -> None:
        """Nor on padding, nor do its draws."""
        predictor, collate, examples = self.predictor(), self.loss_collator(), self.loss_examples()
        whole = predictor.log_likelihood(collate(examples), draws=2)["nll"]
        parts = [predictor.log_likelihood(collate([example]), draws=2)["nll"] for example in examples]
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-5, atol=1e-5)


class ModelContract(ABC):
    """A network, in evaluation mode, for rows of 12 tokens or more."""

    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def model(self) -> Model:
        """The network; its vocabulary has at least 8 ids."""

    def _ids(self, model: Model, batch: int = 3, seq: int = 6) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(4, model.head.weight.shape[0], (batch, seq), generator=generator)

    def _assert_close(self, left: Tensor, right: Tensor) -> None:
        torch.testing.assert_close(left, right, rtol=self.tolerance, atol=self.tolerance)

    def test_forward_is_the_head_on_the_states(self) -> None:
        """So losses and samplers may run the head where they need it."""
        model = self.model()
        ids = self._ids(model)
        self._assert_close(model.forward(ids), model.head(model.hidden(ids)))
        assert isinstance(model.head, nn.Linear)
        assert model.head.bias is None

    def test_a_row_does_not_depend_on_its_batch(self) -> None:
        """Nothing is normalised over rows."""
        model = self.model()
        ids = self._ids(model)
        self._assert_close(model.forward(ids), torch.cat([model.forward(row[None]) for row in ids]))

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_changes_nothing(self, side: str) -> None:
        """On either side, with positions that do not count it."""
        model = self.model()
        ids = self._ids(model)
        junk, where = ids[:, :4], torch.zeros(3, 4, dtype=torch.bool)
        pieces = [(junk, where), (ids, torch.ones_like(ids, dtype=torch.bool))]
        tokens, masks = zip(*(pieces if side == "left" else pieces[::-1]), strict=True)
        padded, mask = torch.cat(tokens, 1), torch.cat(masks, 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        logits = model.forward(padded, mask, positions=positions)
        self._assert_close(logits[mask].reshape(3, 6, -1), model.forward(ids))

    def test_every_parameter_is_used(self) -> None:
        """A parameter without a gradient would stop distributed training."""
        model = self.model()
        assert isinstance(model, nn.Module)
        model.forward(self._ids(model)).sum().backward()  # type: ignore[no-untyped-call]
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    def test_it_can_be_built_without_memory(self) -> None:
        """Configurations are checked with the network on the meta device."""
        with torch.device("meta"):
            assert self.model().head.weight.device.type == "meta"


class PackingContract(ModelContract):
    """A network that can keep the documents of a packed window apart."""

    def test_packed_documents_are_as_if_separate(self) -> None:
        """Two documents in one row, with ``segments`` and positions of their own."""
        model = self.model()
        ids = self._ids(model)
        segments = torch.tensor([[0, 0, 1, 1, 1, 1]]).expand_as(ids)
        positions = torch.tensor([[0, 1, 0, 1, 2, 3]]).expand_as(ids)
        separate = [model.forward(ids[:, :2]), model.forward(ids[:, 2:])]
        self._assert_close(model.forward(ids, positions=positions, segments=segments), torch.cat(separate, 1))


class OracleContract(ABC):
    """A family's oracle case: every oracle holds, and each deliberate fault makes the oracle fail that it names."""

    @abstractmethod
    def case(self) -> OracleCase:
        """The case."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test an oracle, and one a mutation."""
        case = self.case()
        if "oracle_name" in metafunc.fixturenames:
            metafunc.parametrize("oracle_name", [oracle.name for oracle in case.oracles])
        if "fault" in metafunc.fixturenames:
            metafunc.parametrize("fault", [mutation.fault for mutation in case.mutations])

    def test_the_oracle_holds(self, oracle_name: str) -> None:
        """The error is within its tolerance."""
        measured = self.case().oracle(oracle_name).measure()
        assert measured.passed, f"{measured.error:.3g} > {measured.tolerance:.3g} {measured.unit}"

    def test_the_fault_is_noticed(self, fault: str) -> None:
        """By the oracle that the mutation names."""
        case = self.case()
        mutation = next(mutation for mutation in case.mutations if mutation.fault == fault)
        with mutation.applied():
            measured = case.oracle(mutation.caught_by).measure()
        assert not measured.passed, f"{mutation.caught_by}: {measured.error:.3g} <= {measured.tolerance:.3g}"
