from __future__ import annotations

import multiprocessing
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from xlm.data.datamodule import DataModule
from xlm.data.managers import DatasetManager
from xlm.data.order import Place
from xlm.data.padding import keys, pad, positions
from xlm.data.sources import Blank, Rows
from xlm.data.tokenizers import ByteTokenizer, CharTokenizer, load
from xlm.errors import UserError

TEXTS = [{"text": f"document {i}"} for i in range(20)]


class Collate:
    """An lm collator that keeps what it was made with."""

    def __init__(self, *, tokenizer: Any, max_length: int, event_space: str, seed: int, extra: str = "none") -> None:
        self.made = {"max_length": max_length, "event_space": event_space, "seed": seed, "extra": extra}
        self.pad_id = tokenizer.pad_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor | None]:
        ids = pad([example["input_ids"] for example in examples], self.pad_id)
        return {"input_ids": ids, **keys(examples), "position": positions(examples), "nothing": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XLM_CACHE_DIR", str(tmp_path / "cache"))


def lm(rows: list[dict[str, str]] = TEXTS, **options: Any) -> DatasetManager:
    return DatasetManager(source=Rows(rows=rows), kind="loss", roles=["lm"], **options)


def module(managers: dict[str, dict[str, DatasetManager]] | None = None, **options: Any) -> DataModule:
    managers = (
        {"train": {"text": lm()}, "val": {"open": lm(TEXTS[:5], event_space="open")}} if managers is None else managers
    )
    return DataModule(dataset_managers=managers, **{"global_batch_size": 8, "max_length": 16, **options})


def bound(managers: dict[str, dict[str, DatasetManager]] | None = None, **options: Any) -> DataModule:
    data = module(managers, **options)
    data.prepare(ByteTokenizer())
    data.bind({"lm": Collate, "unconditional": Collate})
    return data


def test_a_tokenizer_is_trained_on_the_training_data_once_and_found_again(monkeypatch):
    tokenizer = module({"train": {"a": lm([{"text": "ab"}])}, "val": {"b": lm([{"text": "z"}])}}).prepare(
        CharTokenizer()
    )
    assert len(tokenizer) == 1 + 2 + 4
    monkeypatch.setattr(CharTokenizer, "build", lambda *args: pytest.fail("trained again"))
    again = module({"train": {"a": lm([{"text": "ab"}])}}).prepare(CharTokenizer())
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_that_exists_is_taken_as_it_is_but_must_be_complete(tmp_path):
    ByteTokenizer().build(()).save_pretrained(str(tmp_path))
    given = load(tmp_path)
    assert module().prepare(given) is given
    given.mask_token = None
    with pytest.raises(UserError, match="mask_token"):
        module().prepare(given)


def test_a_tokenizer_cannot_be_trained_without_training_data():
    with pytest.raises(UserError, match="training data"):
        module({"test": {"a": lm()}}).prepare(CharTokenizer())


def test_steps_out_of_order_are_named():
    with pytest.raises(RuntimeError, match="call prepare first"):
        module().bind({"lm": Collate})
    unbound = module()
    unbound.prepare(ByteTokenizer())
    unbound.bind({"lm": Collate}, splits=["train"])
    with pytest.raises(RuntimeError, match=r"val\.open: call DataModule\.bind first"):
        unbound.val_dataloader()


def test_collators_get_what_they_ask_for_by_name_and_each_its_event_space():
    data = module(seed=5)
    data.prepare(ByteTokenizer())
    data.bind({"lm": partial(Collate, extra=None, max_length=12), "seq2seq": None}, extra="given", unused=1)
    [train], [val] = data.managers("train"), data.managers("val")
    assert train.collator.made == {"max_length": 12, "event_space": "window", "seed": 5, "extra": "given"}
    assert val.collator.made["event_space"] == val.event_space == "open"
    assert (val.name, val.role, val.kind, data.names("val"), data.names("test")) == ("open", "lm", "loss", ["open"], [])


def test_collators_that_take_anything_get_everything():
    data = module({"train": {"text": lm()}})
    data.prepare(ByteTokenizer())
    data.bind({"lm": lambda **context: lambda examples: sorted(context)}, noise_schedule="x")
    [names] = {tuple(batch) for batch in data.train_loader(Place(), 1)}
    assert {"tokenizer", "vocab_size", "max_prompt_length", "max_target_length", "noise_schedule", "seed"} < set(names)


def test_a_vocabulary_smaller_than_the_ids_of_the_text_is_refused():
    data = module()
    data.prepare(ByteTokenizer())
    with pytest.raises(UserError, match=r"train.text: example 0 has token id 100.*100 ids"):
        data.bind({"lm": Collate}, vocab_size=100)


def test_the_target_leaves_the_rest_of_the_length_to_the_prompt():
    assert module(max_length=20, max_target_length=5).max_prompt_length == 15
    assert module(max_length=20, max_target_length=5, max_prompt_length=3).max_prompt_length == 3


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"global_batch_size": 0}, "global_batch_size"),
        ({"device_batch_size": -1}, "device_batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"max_length": 1}, "max_length"),
        ({"overfit_batches": 0}, "overfit_batches"),
        ({"max_prompt_length": 12, "max_target_length": 5}, "max_length"),
        ({"max_target_length": 16}, "max_length"),
        ({"max_target_length": 0}, "max_target_length"),
        ({"max_length": 0, "max_target_length": 5}, "max_length"),
        ({"managers": {"dev": {}}}, "dataset_managers"),
    ],
)
def test_values_out_of_range_are_refused_with_their_key(options, key):
    with pytest.raises(UserError, match=rf"datamodule\.{key}"):
        module(**options)


def test_a_length_that_leaves_nothing_for_the_prompt_names_the_two_keys():
    said = r"max_target_length = 17 leaves nothing of it .* in datamodule\.max_length \(5\); fix: use 18 or more"
    with pytest.raises(UserError, match=said):
        module(max_length=5, max_target_length=17)
    assert module(max_length=18, max_target_length=17).max_prompt_length == 1


def test_batch_sizes_that_do_not_divide_are_an_error_with_the_arithmetic():
    assert module(global_batch_size=32).accumulate(4) == 1
    assert module(global_batch_size=32, device_batch_size=4).accumulate(2) == 4
    with pytest.raises(UserError, match=r"no multiple of 4 devices x 3 examples = 12 in .*global_batch_size \(10\)"):
        module(global_batch_size=10, device_batch_size=3).accumulate(4)
    with pytest.raises(UserError, match="no multiple of 4 devices"):
        module(global_batch_size=10).accumulate(4)
    with pytest.raises(UserError, match="3 devices x 1 micro-batches"):
        bound().train_loader(Place(0, 3, 1), 5)
    with pytest.raises(UserError, match="1 devices x 1 micro-batches x 4 examples"):
        bound(device_batch_size=4).train_loader(Place(), 5)


def test_training_data_sets_are_read_as_one():
    data = bound({"train": {"a": lm(TEXTS[:7], event_space="open"), "b": lm(TEXTS[7:], event_space="open")}})
    batches = list(data.train_loader(Place(), 5))
    assert (data.size, data.steps_per_epoch) == (20, 3)
    indices = torch.cat([batch["index"] for batch in batches])[:20]
    assert sorted(indices.tolist()) == list(range(20))
    texts = [bytes(row[row < 256].tolist()).decode() for batch in batches for row in batch["input_ids"]][:20]
    assert texts == [TEXTS[index]["text"] for index in indices.tolist()]


def test_training_data_sets_of_different_event_spaces_are_refused():
    with pytest.raises(UserError, match=r"train\.a.*train\.b"):
        bound({"train": {"a": lm(), "b": lm(event_space="open")}})


def test_overfitting_repeats_the_first_batches():
    data = bound(overfit_batches=1)
    indices = torch.cat([batch["index"] for batch in data.train_loader(Place(), 3)])
    assert sorted(indices.tolist()) == sorted([*range(8)] * 3)


def test_evaluation_on_training_takes_the_examples_that_are_trained_on():
    other = DatasetManager(source=Blank(n=3), kind="prediction", roles=["unconditional"])
    managers = {"train": {"a": lm(event_space="open")}, "val": {"b": lm(TEXTS[15:], event_space="open"), "c": other}}
    data = bound(managers, overfit_batches=1, evaluate_on="training", max_length=32)
    trained = torch.cat([batch["index"] for batch in data.train_loader(Place(), 3)]).unique().tolist()
    seen, blank = data.managers("val")
    assert [row["text"] for row in seen.examples(range(len(seen)))] == [TEXTS[i]["text"] for i in trained]
    assert (seen.of_training, blank.of_training, len(blank)) == (True, False, 3)
    assert not bound(managers, overfit_batches=1).managers("val")[1].of_training


def test_training_without_data_or_steps_is_refused():
    with pytest.raises(UserError, match=r"dataset_managers\.train"):
        bound({"val": {"a": lm()}}).train_loader(Place(), 1)
    with pytest.raises(UserError, match=r"trainer\.max_steps \(-1\)"):
        bound().train_loader(Place(), -1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_collator_names_the_data_set_and_the_examples(workers):
    class Broken(Collate):
        def __call__(self, examples: Any) -> Any:
            raise ValueError("no such thing")

    data = module(num_workers=workers)
    data.prepare(ByteTokenizer())
    data.bind({"lm": Broken})
    with pytest.raises(RuntimeError, match=r"val\.open: no batch of examples \[0, 1, 2, 3, 4\].*no such thing"):
        next(iter(data.val_dataloader()[0]))
    for worker in multiprocessing.active_children():  # the traceback keeps it alive
        worker.terminate()


def test_unconditional_rows_have_their_keys_only():
    class Keys(Collate):
        def __call__(self, examples: Any) -> Any:
            return examples

    data = module({"predict": {"free": DatasetManager(source=Blank(n=2), kind="prediction", roles=["unconditional"])}})
    data.prepare(ByteTokenizer())
    data.bind({"unconditional": Keys})
    [[row, _]] = data.predict_dataloader()[0]
    assert set(row) == {"index", "position", "noise_key"}


class Recorder(LightningModule):
    """A model of one weight that writes down the examples of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": [], "predict": []}

    def training_step(self, batch: Any, step: int) -> Tensor:
        self.seen["train"].append(batch["position"].tolist())
        return (self.weight - batch["index"].float().mean()) ** 2

    def validation_step(self, batch: Any, step: int, dataloader_idx: int = 0) -> None:
        self.seen["val"].append(batch["index"].tolist())

    def predict_step(self, batch: Any, step: int, dataloader_idx: int = 0) -> None:
        self.seen["predict"].append(batch["index"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Any, steps: int, **options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", use_distributed_sampler=False, **quiet, **options
    )


def train(recorder: Recorder, folder: Any, steps: int, accumulate: int, **options: Any) -> Trainer:
    data = bound(device_batch_size=8 // accumulate, num_workers=accumulate - 1)
    running = trainer(folder, steps, accumulate_grad_batches=accumulate, val_check_interval=4 * accumulate)
    running.fit(recorder, data, weights_only=True, **options)
    return running


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1)])
def test_lightning_reads_a_run_as_one_epoch_and_resumes_it_with_any_accumulation(tmp_path, before, after):
    first, second = Recorder(), Recorder()
    train(first, tmp_path, 5, before).save_checkpoint(tmp_path / "five.ckpt")
    resumed = train(second, tmp_path, 9, after, ckpt_path=tmp_path / "five.ckpt")
    assert [position for batch in first.seen["train"] for position in batch] == list(range(40))
    assert [position for batch in second.seen["train"] for position in batch] == list(range(40, 72))
    assert resumed.global_step == 9
    assert [index for batch in second.seen["val"] for index in batch] == [0, 1, 2, 3, 4]


def test_lightning_predicts_every_example_once_and_needs_no_validation_data(tmp_path):
    recorder = Recorder()
    data = bound({"train": {"a": lm()}, "predict": {"a": lm(TEXTS[:5], event_space="open")}}, device_batch_size=2)
    trainer(tmp_path, 1, accumulate_grad_batches=4).fit(recorder, data)
    trainer(tmp_path, 1).predict(recorder, data, return_predictions=False)
    assert recorder.seen["predict"] == [[0, 1], [2, 3], [4]]
