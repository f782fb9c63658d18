"""The options that tasks ship: they compose with the core's configuration, build, and give right answers full marks."""

from __future__ import annotations

from pathlib import Path

import pytest
import xlm
from xlm.config import compose
from xlm.config.validation import validate
from xlm.data.datamodule import DataModule
from xlm.instantiate import construct
from xlm.tasks.sudoku import solutions
from xlm.tasks.sudoku_difficulty import DIFFICULTIES

OPTIONS = Path(xlm.__file__).parent / "configs" / "lightning_train"
PUZZLES = ["sudoku_4x4", "sudoku_6x6", "sudoku_9x9"]
TASKS = ["sudoku_4x4", "sudoku_6x6", "star_easy"]  # 9x9 differs in nothing but its lengths
QUESTIONS = ["star_medium", "star_hard", "addition", "addition_reversed"]  # a prompt and a target come first
ROLES = ("lm", "seq2seq", "seq2seq_prediction", "infill", "infill_prediction", "unconditional")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (OPTIONS / group).glob("*.yaml"))


def collate(examples):
    return examples


def small(option: str) -> list[str]:
    """Overrides that leave a few rows of every data set."""
    managers = compose([f"datamodule={option}"]).datamodule.dataset_managers
    keys = [f"{split}.{name}" for split in managers for name in managers[split] if "n" in managers[split][name].source]
    return [f"datamodule={option}", *(f"datamodule.dataset_managers.{key}.source.n=3" for key in keys)]


def checked(overrides: list[str]):
    config = compose(overrides)
    part = {"_target_": "torch.nn.Identity"}  # a model_type brings them; the core has none
    config.update({"family": "any", "model": part, "loss": part, "predictor": part, "collators": {"lm": part}})
    return validate(config)


def build(tmp_path, overrides: list[str], roles=ROLES) -> DataModule:
    config = compose([*overrides, f"datamodule.cache_dir={tmp_path / 'cache'}"])
    data = construct(config.datamodule, seed=7)
    data.prepare(construct(config.tokenizer))
    data.bind({role: (lambda: collate) for role in roles})
    return data


def mark(manager, predict) -> dict[str, float]:
    """Every metric of a data set for the predictions that ``predict(example)`` gives."""
    examples = manager.examples(range(len(manager)))
    values = {}
    for metric in manager.metrics.values():
        metric.reset()
        metric.update(examples, [{"prediction": predict(example)} for example in examples])
        values |= metric.compute()
    return values


@pytest.mark.parametrize("option", options("datamodule"))
def test_every_key_of_a_datamodule_is_an_argument_with_a_value_of_its_type(option, tmp_path):
    config = checked([f"datamodule={option}", f"datamodule.path={tmp_path}"])
    assert config.datamodule.dataset_managers.train


@pytest.mark.parametrize("option", options("dataset_manager"))
def test_every_dataset_manager_can_be_added_to_another_run_with_its_own_settings(option, tmp_path):
    added = f"+dataset_manager@datamodule.dataset_managers.test.added={option}"
    config = checked(["datamodule=text", f"datamodule.path={tmp_path}", added])
    alone = construct(config.datamodule).managers("test")[-1]
    assert alone.name == "added"
    assert "test" in {getattr(alone.source, "split", "test"), getattr(alone.source, "arguments", {}).get("split")}
    if option.startswith("sudoku"):
        name = option.split("_")[1]
        assert alone.source.size == (9 if name in DIFFICULTIES else int(name.partition("x")[0]))
        assert alone.source.difficulty == (name if name in DIFFICULTIES else None)


@pytest.mark.parametrize("option", sorted({*options("tokenizer")} - {"pretrained"}))
def test_every_tokenizer_gives_back_the_words_of_its_training_text(option):
    tokenizer = construct(compose([f"tokenizer={option}"]).tokenizer).build(["11 5 5 3"])
    ids = tokenizer.encode("11 5 5 3", add_special_tokens=False)
    assert tokenizer.decode(ids) == "11 5 5 3"


def test_a_pretrained_tokenizer_is_named_by_the_user():
    assert construct(compose(["tokenizer=pretrained", "tokenizer.name=gpt2"]).tokenizer).name == "gpt2"


@pytest.mark.parametrize(("option", "tokenizer"), [*((puzzle, "char") for puzzle in PUZZLES), ("star_easy", "word")])
def test_a_task_brings_its_tokenizer_and_the_user_may_take_another(option, tokenizer):
    assert compose([f"datamodule={option}"]).choices.tokenizer == tokenizer
    assert compose([f"datamodule={option}", "tokenizer=byte"]).choices.tokenizer == "byte"


@pytest.mark.parametrize("option", TASKS)
@pytest.mark.parametrize("view", ["infill", "seq2seq"])
def test_both_views_fit_their_lengths_and_right_answers_get_full_marks(option, view, tmp_path):
    data = build(tmp_path, small(option), roles=(view, f"{view}_prediction"))
    for split in ("val", "test"):
        loss, prediction = data.managers(split)
        assert (loss.role, prediction.role) == (view, f"{view}_prediction")
        assert loss.source.split == prediction.source.split == split
        values = mark(prediction, lambda example: example["target"])
        assert values["exact_match"] == values["token_accuracy"] == values["validity"] == 1
        values = mark(prediction, lambda example: example["target"][::-1].replace("1", "2"))
        assert values["exact_match"] == values["validity"] == 0


@pytest.mark.parametrize("option", QUESTIONS)
def test_questions_fit_their_lengths_and_right_answers_get_full_marks(option, tmp_path):
    data = build(tmp_path, small(option), roles=("seq2seq", "seq2seq_prediction"))
    for split in ("val", "test"):
        loss, prediction = data.managers(split)
        assert (loss.role, prediction.role) == ("seq2seq", "seq2seq_prediction")
        assert vars(loss.source) == vars(prediction.source)
        assert loss.source.split == split
        values = mark(prediction, lambda example: example["target"])
        assert values["exact_match"] == values["token_accuracy"] == values["validity"] == 1
        assert mark(prediction, lambda example: "x")["validity"] == 0


@pytest.mark.parametrize(
    ("option", "longest"), [("star_medium", (32, 10)), ("star_hard", (112, 22)), ("addition", (12, 6))]
)
def test_the_longest_question_and_answer_leave_room_for_eos_alone(option, longest):
    data = construct(compose([f"datamodule={option}"]).datamodule)
    assert (data.max_prompt_length, data.max_target_length - 1) == longest


@pytest.mark.parametrize("option", TASKS)
def test_longest_rows_fill_the_lengths_exactly(option, tmp_path):
    data = build(tmp_path, small(option), roles=("seq2seq", "seq2seq_prediction"))
    example = next(iter(data.val_dataloader()[0]))[0]
    assert len(example["prompt_ids"]) == data.max_prompt_length
    assert len(example["target_ids"]) == data.max_target_length - 1
    assert data.max_length == data.max_prompt_length + data.max_target_length


@pytest.mark.parametrize("option", TASKS)
def test_only_what_is_not_given_is_to_be_filled_in(option, tmp_path):
    data = build(tmp_path, small(option), roles=("infill", "infill_prediction"))
    example = next(iter(data.val_dataloader()[1]))[0]
    raw = data.managers("val")[1].examples([0])[0]
    units = list(raw["target"]) if option in PUZZLES else raw["target"].split()
    asked = [unit for unit, fixed in zip(units, example["fixed"], strict=True) if not fixed]
    if option in PUZZLES:
        assert len(asked) == raw["prompt"].count(".")
    else:
        assert asked == raw["target"].split()[-8:]


@pytest.mark.parametrize("option", TASKS)
def test_the_vocabulary_has_everything_that_other_splits_need(option, tmp_path):
    overrides = [word for word in small(option) if ".train." not in word]
    train = "sudoku" if option in PUZZLES else "star"
    data = build(tmp_path, [*overrides, f"datamodule.dataset_managers.train.{train}.source.n=50"])
    for split in ("val", "test"):
        assert all(not manager.report.get("unknown") for manager in data.managers(split))


@pytest.mark.parametrize(
    ("option", "values"),
    [
        (
            "text",
            {"document": "line", "pattern": "*.md", "errors": "replace", "val_fraction": 0.2, "test_fraction": 0.3},
        ),
        ("stdlib", {"max_bytes": 50_000, "val_fraction": 0.2, "test_fraction": 0.3}),
        ("sudoku_4x4", {"clues": [7, 8], "difficulty": "medium"}),
        ("n_queens", {"size": 6, "clues": [2, 2]}),
        ("graph_colouring", {"nodes": 5, "edges": 4, "colours": 2}),
        ("hmm", {"n_symbols": 3, "stay": 0.8, "noise": 0.2}),
        ("pcfg", {"most_pairs": 5, "kinds": 3, "branch": 0.3}),
    ],
)
def test_what_is_said_of_the_training_source_holds_for_the_other_splits(option, values):
    name = {"text": "text", "stdlib": "text", "sudoku_4x4": "sudoku"}.get(option, option)
    given = [f"datamodule.dataset_managers.train.{name}.source.{key}={value}" for key, value in values.items()]
    managers = construct(compose([f"datamodule={option}", "datamodule.path=.", *given]).datamodule)
    sources = [managers.managers(split)[0].source for split in ("train", "val", "test")]
    for key in values:
        assert len({str(getattr(source, key)) for source in sources}) == 1
    assert [source.split for source in sources] == ["train", "val", "test"]


def test_sums_and_their_check_are_reversed_together():
    for option, reverse in (("addition", False), ("addition_reversed", True)):
        config = compose([f"datamodule={option}", "datamodule.dataset_managers.train.addition.source.digits=2"])
        data = construct(config.datamodule)
        for split in ("val", "test"):
            loss, prediction = data.managers(split)
            assert loss.source.digits == prediction.source.digits == 2
            assert loss.source.reverse == prediction.metrics["validity"].is_right.reverse == reverse


def test_every_row_of_hmm_is_one_window_of_the_process(tmp_path):
    data = build(tmp_path, [*small("hmm"), "datamodule.max_length=6", "datamodule.event_space=open"])
    for split in ("train", "val", "test"):
        manager = data.managers(split)[0]
        assert (manager.role, manager.event_space, manager.source.split) == ("lm", "window", split)
        rows = [example["text"].replace(" ", "") for example in manager.examples(range(len(manager)))]
        assert ["".join(rows)] == [row["text"] for row in manager.source.rows()]
        assert [len(row) for row in rows] == [6, 6, 6]


def test_every_row_of_pcfg_is_one_text_and_samples_are_judged(tmp_path):
    data = build(tmp_path, [*small("pcfg"), "datamodule.event_space=window"])
    for split in ("train", "val", "test"):
        manager = data.managers(split)[0]
        assert (manager.role, manager.event_space, manager.source.split) == ("lm", "open", split)
        texts = [row["text"] for row in manager.source.rows()]
        assert [example["text"] for example in manager.examples(range(3))] == texts
    samples = data.managers("test")[1]
    assert mark(samples, lambda example: "([])")["validity"] == 1
    assert mark(samples, lambda example: "([)]")["validity"] == 0


def test_the_longest_text_of_pcfg_fills_a_row():
    data = construct(compose(["datamodule=pcfg"]).datamodule)
    assert data.max_length == 2 * data.managers("train")[0].source.most_pairs + 1


@pytest.mark.parametrize("option", ["n_queens", "graph_colouring"])
@pytest.mark.parametrize("view", ["infill", "seq2seq"])
def test_questions_with_many_answers_are_judged_by_validity_and_coverage(option, view, tmp_path):
    few = [word for word in small(option) if "_prediction" not in word]
    few += [f"datamodule.dataset_managers.test.{option}_prediction.source.{word}" for word in ("n=2", "samples=2")]
    data = build(tmp_path, few, roles=(view, f"{view}_prediction"))
    loss, prediction = data.managers("test")
    assert (loss.role, prediction.role, len(prediction)) == (view, f"{view}_prediction", 4)
    assert (loss.source.samples, loss.source.split) == (1, "test")
    values = mark(prediction, lambda example: example["target"])
    answers = [prediction.metrics["coverage"].answers(row) for row in prediction.examples([0, 2])]
    assert values["validity"] == 1
    assert values["coverage"] == 2 / sum(map(len, answers))
    assert mark(prediction, lambda example: "")["validity"] == 0


@pytest.mark.parametrize("option", PUZZLES)
def test_all_puzzles_of_a_data_module_have_the_size_of_its_name(option):
    data, size = construct(compose([f"datamodule={option}"]).datamodule), int(option[-1])
    assert (data.max_prompt_length, data.max_target_length) == (size**2, size**2 + 1)
    sizes = {manager.source.size for split in ("train", "val", "test") for manager in data.managers(split)}
    assert sizes == {size}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_all_puzzles_of_a_data_module_have_the_difficulty_of_its_name(difficulty):
    data = construct(compose([f"datamodule=sudoku_{difficulty}"]).datamodule)
    sources = [manager.source for split in ("train", "val", "test") for manager in data.managers(split)]
    assert {(source.size, source.difficulty, source.clues) for source in sources} == {(9, difficulty, sources[0].clues)}


@pytest.mark.parametrize("option", ["star_easy", "star_medium", "star_hard"])
def test_star_sizes_are_those_of_the_paper(option):
    data = construct(compose([f"datamodule={option}"]).datamodule)
    assert [data.managers(split)[0].source.n for split in ("train", "val", "test")] == [50_000, 100, 5000]
    assert [data.managers(split)[1].source.n for split in ("val", "test")] == [100, 5000]


def test_the_runs_seed_orders_the_data_and_does_not_choose_it():
    data = construct(compose(["datamodule=sudoku_4x4", "seed=3"]).datamodule, seed=3)
    assert data.seed == 3
    assert {manager.source.seed for split in ("train", "val", "test") for manager in data.managers(split)} == {0}


def test_text_is_split_once_and_packed_or_open_as_one_key_says(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i} has some words." for i in range(200)))
    overrides = ["datamodule=text", f"datamodule.path={path}", "datamodule.max_length=32"]
    packed, open_ = build(tmp_path, overrides), build(tmp_path, [*overrides, "datamodule.event_space=open"])
    assert {manager.event_space for manager in packed.managers("val")} == {"window"}
    first = next(iter(packed.val_dataloader()[0]))[0]
    assert len(first["input_ids"]) == 32
    splits = [open_.managers(split)[0] for split in ("train", "val", "test")]
    texts = [{row["text"] for row in manager.source.rows()} for manager in splits]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 200
    assert {manager.event_space for manager in open_.managers("val")} == {"open"}


def test_a_document_longer_than_an_open_row_is_split_and_counted(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"{i:03} " + "words " * 20 for i in range(30)))
    open_ = ["datamodule.max_length=32", "datamodule.event_space=open"]
    overrides = ["datamodule=text", f"datamodule.path={path}", *open_]
    assert build(tmp_path, overrides).managers("train")[0].report["split"] > 0


def test_the_standard_library_needs_no_path(tmp_path):
    data = build(tmp_path, ["datamodule=stdlib", "datamodule.dataset_managers.train.text.source.max_bytes=600000"])
    assert all(len(data.managers(split)[0]) > 0 for split in ("train", "val", "test"))
    assert [manager.role for manager in data.managers("test")] == ["lm", "unconditional"]
    assert len(data.managers("test")[1]) == 8


def test_a_puzzle_survives_the_tokenizer(tmp_path):
    data = build(tmp_path, small("sudoku_6x6"), roles=("seq2seq", "seq2seq_prediction"))
    example = next(iter(data.val_dataloader()[0]))[0]
    assert data.tokenizer is not None
    prompt, target = (data.tokenizer.decode(example[f"{name}_ids"]) for name in ("prompt", "target"))
    assert solutions(prompt, limit=2) == [target]
