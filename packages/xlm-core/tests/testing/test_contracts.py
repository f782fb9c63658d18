"""A small family that keeps the contracts, and for each check a mutation that only this check has to find."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from torch import nn
from xlm.data.padding import keys, pad, padding_mask
from xlm.errors import UserError
from xlm.noise import uniforms
from xlm.sampling import draw, suppress, suppressed_ids
from xlm.testing import contracts
from xlm.testing.factories import infill_examples, lm_examples, seq2seq_examples, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
VOCAB = len(TOKENIZER)


class Collate:
    """Noisy copies of texts: about half of the tokens are hidden."""

    event_space = "window"

    def __init__(self, column="input_ids"):
        self.column = column

    def __call__(self, examples):
        rows = [example[self.column] for example in examples]
        if max(map(len, rows)) > 32:
            raise UserError("too long", where="datamodule.max_length", fix="raise max_length")
        ids, mask = pad(rows, 0), padding_mask([len(row) for row in rows], max(map(len, rows)))
        batch = keys(examples)
        hidden = (uniforms(batch["noise_key"], ids.shape[1]) < 0.5) & mask
        return {
            **batch,
            "input_ids": ids.masked_fill(hidden, 1),
            "target_ids": ids,
            "mask": mask,
            "n_tokens": mask.sum(1),
        }


class ChangesExamples(Collate):
    def __call__(self, examples):
        batch = super().__call__(examples)
        examples[0]["input_ids"][0] = 5
        return batch


class DrawsGlobally(Collate):
    def __call__(self, examples):
        torch.rand(1)
        return super().__call__(examples)


class Remembers(Collate):
    calls = 0

    def __call__(self, examples):
        self.calls += 1
        return {**super().__call__(examples), "n": torch.full((len(examples),), self.calls)}


class ForgetsKeys(Collate):
    def __call__(self, examples):
        return {**super().__call__(examples), "index": torch.arange(len(examples)) + 1}


class SharesNoise(Collate):
    def __call__(self, examples):
        batch = super().__call__(examples)
        hidden = uniforms(batch["noise_key"][:1], batch["target_ids"].shape[1]) < 0.5
        return {**batch, "input_ids": batch["target_ids"].masked_fill(hidden & batch["mask"], 1)}


class ShiftsOneEntry(Collate):
    def __call__(self, examples):
        batch = super().__call__(examples)
        return {**batch, "mask": batch["mask"].flip(1)}


class ReadsEveryColumn(Collate):
    def __call__(self, examples):
        return {**super().__call__(examples), "n_columns": torch.tensor([len(example) for example in examples])}


class CutsSilently(Collate):
    def __call__(self, examples):
        cut = [{**example, self.column: example[self.column][:32]} for example in examples]
        return super().__call__(cut)


class CannotTravel(Collate):
    def __init__(self):
        super().__init__()
        self.function = lambda: None


class HasNoEventSpace(Collate):
    event_space = "unknown"


class Network(nn.Module):
    """Sees its own token, the sum of the others that are real, and its position."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 6, dtype=dtype)
        self.head = nn.Linear(6, VOCAB, bias=False, dtype=dtype)

    def hidden(self, input_ids, attention_mask=None, *, positions=None, segments=None):
        x = self.embed(input_ids)
        seen = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
        pairs = seen[:, None, :].expand(-1, seen.shape[1], -1)
        if segments is not None:
            pairs = pairs & (segments[:, None] == segments[:, :, None])
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=x.device)[None]
        return torch.tanh(x + pairs.to(x.dtype) @ x * torch.cos(positions.to(x.dtype))[..., None])

    def forward(self, *args, **kwargs):
        return self.head(self.hidden(*args, **kwargs))


class IgnoresPadding(Network):
    def hidden(self, input_ids, attention_mask=None, **kwargs):
        return super().hidden(input_ids, None, **kwargs)


class IgnoresSegments(Network):
    def hidden(self, input_ids, attention_mask=None, *, segments=None, **kwargs):
        return super().hidden(input_ids, attention_mask, **kwargs)


class NormalisesOverRows(Network):
    def hidden(self, *args, **kwargs):
        states = super().hidden(*args, **kwargs)
        return states - states.mean(0)


class SkipsTheHead(Network):
    def forward(self, *args, **kwargs):
        return 2 * super().forward(*args, **kwargs)


class HasAnUnusedParameter(Network):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2))


class NeedsMemory(Network):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, VOCAB, bias=False, dtype=torch.float64, device="cpu")


def model(make=Network):
    torch.manual_seed(0)
    return make()


class Loss:
    """Cross-entropy of hidden tokens a real token."""

    def __init__(self):
        self.model, self.tokenizer = model(), TOKENIZER

    def terms(self, batch):
        logits = self.model.head(self.model.hidden(batch["input_ids"], batch["mask"]))
        costs = nn.functional.cross_entropy(logits.transpose(1, 2), batch["target_ids"], reduction="none")
        return costs * (batch["input_ids"] == 1)

    def loss_fn(self, batch):
        nll, n = self.terms(batch).sum(1), batch["n_tokens"]
        return {"loss": nll.sum() / n.sum(), "loss_denominator": n.sum(), "nll": nll.detach(), "n_tokens": n}


class ChangesTheBatch(Loss):
    def loss_fn(self, batch):
        result = super().loss_fn(batch)
        batch["target_ids"][batch["input_ids"] != 1] = -100
        return result


class MeanOfMeans(Loss):
    def loss_fn(self, batch):
        result = super().loss_fn(batch)
        return {**result, "loss": (result["nll"] / batch["n_tokens"]).mean() + 0 * result["loss"]}


class CountsPadding(Loss):
    def loss_fn(self, batch):
        result, mean = super().loss_fn(batch), self.terms(batch).sum() / batch["target_ids"].numel()
        return {**result, "loss": mean, "loss_denominator": torch.tensor(batch["target_ids"].numel())}


class SpreadsNll(Loss):
    def loss_fn(self, batch):
        result = super().loss_fn(batch)
        return {**result, "nll": result["nll"].mean().expand(len(result["nll"]))}


class DetachesTooMuch(Loss):
    def loss_fn(self, batch):
        result = super().loss_fn(batch)
        penalty = self.model.head.weight.square().sum()
        return {**result, "loss": result["loss"] + (penalty.detach() - penalty) * 1e-3}


class Predict:
    """Draws as many tokens as the prompt has, all in one call."""

    noise_schedule = None
    trace = False

    def __init__(self):
        self.model, self.tokenizer, self.loss = model(), TOKENIZER, Loss()

    def uniforms(self, batch, length):
        return uniforms(batch["noise_key"], length, stream=1, dtype=torch.float64)

    @torch.no_grad()
    def predict(self, batch):
        logits = suppress(self.model(batch["target_ids"], batch["mask"]), suppressed_ids(TOKENIZER))
        u = self.uniforms(batch, logits.shape[1])
        ids = draw(logits.flatten(0, 1), u.flatten()).reshape(u.shape).masked_fill(~batch["mask"], 0)
        return {"ids": ids, "lengths": batch["n_tokens"], "n_calls": torch.ones_like(batch["n_tokens"])}

    def to_dict(self, batch, preds):
        rows = zip(
            *(x.tolist() for x in (batch["index"], preds["ids"], preds["lengths"], preds["n_calls"])), strict=True
        )
        return [
            {"index": index, "prompt": "", "prediction": TOKENIZER.decode(ids[:n]), "ids": ids[:n], "n_calls": calls}
            | ({"start_ids": [], "trace": self.events(ids[:n])} if self.trace else {})
            for index, ids, n, calls in rows
        ]

    def events(self, ids):
        return [{"step": 0, "action": "append", "position": place, "token": token} for place, token in enumerate(ids)]

    def log_likelihood(self, batch, *, draws=1):
        with torch.no_grad():
            nll = self.loss.terms(batch).sum(1)
        return {"nll": nll, "n_tokens": batch["n_tokens"], "kind": "pseudo", "estimator": "hidden", "n_calls": draws}


class DrawsByPlaceInTheBatch(Predict):
    def uniforms(self, batch, length):
        return uniforms(torch.arange(len(batch["index"])), length, dtype=torch.float64)


class DrawsFromTheGlobalGenerator(Predict):
    def uniforms(self, batch, length):
        return torch.rand(len(batch["index"]), length, dtype=torch.float64)


class GeneratesMasks(Predict):
    def predict(self, batch):
        predictions = super().predict(batch)
        return {**predictions, "ids": predictions["ids"].masked_fill(batch["mask"], 1)}


class WritesTensors(Predict):
    def to_dict(self, batch, preds):
        return [{**row, "prediction": preds["ids"][0]} for row in super().to_dict(batch, preds)]


class ForgetsAnEvent(Predict):
    def events(self, ids):
        return super().events(ids)[:-1]


class CountsHiddenTokensOnly(Predict):
    def log_likelihood(self, batch, *, draws=1):
        return {**super().log_likelihood(batch, draws=draws), "n_tokens": (batch["input_ids"] == 1).sum(1)}


class AveragesLikelihoods(Predict):
    def log_likelihood(self, batch, *, draws=1):
        result = super().log_likelihood(batch, draws=draws)
        return {**result, "nll": result["nll"].mean().expand(len(result["nll"]))}


def collator_case(make=Collate, examples=lambda: lm_examples([3, 7, 5])):
    class Case(contracts.PredictionCollatorContract):
        collator = staticmethod(make)

        def examples(self):
            return examples()

    return Case()


def model_case(make=Network):
    class Case(contracts.PackingContract):
        def model(self):
            return model(make)

    return Case()


def loss_case(make=Loss):
    class Case(contracts.LossContract):
        loss, collator = staticmethod(make), staticmethod(Collate)

        def examples(self):
            return lm_examples([3, 7, 5])

    return Case()


def predictor_case(make=Predict):
    class Case(contracts.PredictorContract):
        predictor, collator, loss_collator = staticmethod(make), staticmethod(Collate), staticmethod(Collate)

        def examples(self):
            return lm_examples([3, 7, 5])

        loss_examples = examples

    return Case()


ANSWERED = "test_the_batch_does_not_depend_on_the_answer"
MUTATIONS = {
    collator_case: {
        ChangesExamples: "test_examples_are_only_read_and_no_global_generator_is_used",
        DrawsGlobally: "test_examples_are_only_read_and_no_global_generator_is_used",
        Remembers: "test_the_same_examples_give_the_same_batch",
        ForgetsKeys: "test_every_row_carries_its_keys",
        SharesNoise: "test_a_row_does_not_depend_on_its_batch",
        ShiftsOneEntry: "test_a_row_does_not_depend_on_its_batch",
        ReadsEveryColumn: "test_columns_it_does_not_know_are_ignored",
        CutsSilently: "test_a_row_that_is_too_long_names_the_key_to_change",
        CannotTravel: "test_it_says_its_event_space_and_travels_to_workers",
        HasNoEventSpace: "test_it_says_its_event_space_and_travels_to_workers",
    },
    model_case: {
        SkipsTheHead: "test_forward_is_the_head_on_the_states",
        NormalisesOverRows: "test_a_row_does_not_depend_on_its_batch",
        IgnoresPadding: "test_padding_changes_nothing",
        HasAnUnusedParameter: "test_every_parameter_is_used",
        NeedsMemory: "test_it_can_be_built_without_memory",
        IgnoresSegments: "test_packed_documents_are_as_if_separate",
    },
    loss_case: {
        ChangesTheBatch: "test_the_batch_is_only_read_and_no_global_generator_is_used",
        MeanOfMeans: "test_loss_and_denominator_add_up_over_rows",
        CountsPadding: "test_loss_and_denominator_add_up_over_rows",
        SpreadsNll: "test_nll_of_a_row_does_not_depend_on_its_batch",
        DetachesTooMuch: "test_the_gradient_is_that_of_the_loss",
    },
    predictor_case: {
        DrawsFromTheGlobalGenerator: "test_the_batch_is_only_read_and_no_global_generator_is_used",
        DrawsByPlaceInTheBatch: "test_a_prediction_does_not_depend_on_its_batch",
        GeneratesMasks: "test_control_tokens_are_never_generated",
        WritesTensors: "test_rows_are_json",
        ForgetsAnEvent: "test_a_trace_leads_to_the_answer",
        CountsHiddenTokensOnly: "test_a_likelihood_says_what_it_is",
        AveragesLikelihoods: "test_a_likelihood_does_not_depend_on_its_batch",
    },
}

# what Python itself raises; the other mutations fail an assertion or a pytest.raises
ERRORS = {
    CannotTravel: (AttributeError, pickle.PicklingError),
    WritesTensors: TypeError,
    NeedsMemory: (RuntimeError, NotImplementedError, AssertionError),
}


def run(case, name):
    check = getattr(case, name)
    sides = ["left", "right"] if "side" in inspect.signature(check).parameters else [None]
    for side in sides:
        check(side) if side else check()


def checks(case):
    return [name for name in dir(case) if name.startswith("test_") and name != ANSWERED]


@pytest.mark.parametrize("make_case", MUTATIONS)
def test_a_family_that_keeps_the_contracts_passes_every_check(make_case):
    for name in checks(make_case()):
        run(make_case(), name)


@pytest.mark.parametrize("make_case", MUTATIONS)
def test_every_check_has_a_mutation_that_it_finds(make_case):
    assert set(checks(make_case())) == set(MUTATIONS[make_case].values())


@pytest.mark.parametrize(
    ("make_case", "mutation", "name"),
    [(case, mutation, name) for case, found in MUTATIONS.items() for mutation, name in found.items()],
)
def test_a_broken_promise_is_found(make_case, mutation, name):
    case = make_case(mutation)
    with pytest.raises(ERRORS.get(mutation, (AssertionError, pytest.fail.Exception))):
        run(case, name)


@pytest.mark.parametrize("examples", [seq2seq_examples([3, 4], [2, 5]), infill_examples([6, 8])])
def test_an_answer_that_leaks_into_the_batch_is_found(examples):
    column = "target_ids" if "target_ids" in examples[0] else "input_ids"
    case = collator_case(lambda: Collate(column), lambda: examples)
    with pytest.raises(AssertionError):
        run(case, ANSWERED)


def test_a_batch_without_the_answer_passes():
    examples = seq2seq_examples([3, 4, 5], [2, 5, 1])
    run(collator_case(lambda: Collate("prompt_ids"), lambda: examples), ANSWERED)


def test_equality_looks_inside_and_at_types():
    assert contracts.same({"a": [torch.ones(2), None]}, {"a": [torch.ones(2), None]})
    assert not contracts.same({"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.float64)})
    assert not contracts.same([1, 2], [1, 2, 3])
    assert not contracts.same({"a": 1}, {"b": 1})
    assert not contracts.same(torch.ones(1), None)
