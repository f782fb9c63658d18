"""Every option that ships composes, passes validation and builds, in every combination of family and task."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from xlm import registry
from xlm.commands.assemble import build_data, rehearse
from xlm.config import compose, search, validate
from xlm.errors import UserError

FAMILIES = sorted(search.options()["model_type"])
TASKS = sorted(search.options()["datamodule"])
# Options that need something of the machine's, and what stands in for it.
NEEDS = {
    "tokenizer=pretrained": ["tokenizer.name=gpt2"],
    "callbacks=best": ["callbacks.best.monitor=val/sudoku/loss"],
}
CHECK, ANSWERS = "xlm.tasks.sudoku.SudokuCheck", "xlm.tasks.n_queens.Completions"
# Groups whose options are tried through others: model_type through families, collator through model_type.
OTHERWISE = {"", "model_type", "datamodule", "hydra", "experiment"}


FROM_A_PATH = ("text", "table", "pairs", "hub")


def for_text(task: str, file: Path) -> list[str]:
    return [f"datamodule.path={file}"] if task in FROM_A_PATH else []


def check(*overrides: str) -> None:
    config = compose(list(overrides))
    validate(config)
    rehearse(config)


def options_of(family: str) -> list[tuple[str, str]]:
    """(group, option) pairs that go with a family: its own, and the core's."""
    others = tuple(f"{other}_" for other in FAMILIES if other != family)
    return [
        (group, name)
        for group, names in sorted(search.options().items())
        for name in sorted(names)
        if group.partition("/")[0] not in OTHERWISE and "/" not in group
        if (not name.startswith(others) and name not in FAMILIES) or name == family
    ]


def as_override(group: str, name: str) -> str:
    if group == "collator":
        return f"collator@collators.{name.partition('_')[2]}={name}"
    if group == "dataset_manager":
        return f"+dataset_manager@datamodule.dataset_managers.test.extra={name}"
    if group == "metrics":
        return f"+metrics@datamodule.dataset_managers.test.sudoku_prediction.metrics.extra={name}"
    return f"{group}={name}"


def test_the_families_are_those_of_the_registry():
    assert sorted(package.name for package in registry.families()) == FAMILIES


@pytest.mark.parametrize(("family", "task"), list(itertools.product(FAMILIES, TASKS)))
def test_every_family_fits_every_task(family, task, text_file):
    check(f"model_type={family}", f"datamodule={task}", *for_text(task, text_file))


@pytest.mark.parametrize(
    ("family", "group", "name"), [(family, *option) for family in FAMILIES for option in options_of(family)]
)
def test_every_option_builds(family, group, name, text_file):
    option = as_override(group, name)
    more = [*NEEDS.get(option, [])]
    if name.startswith(FROM_A_PATH) and group == "dataset_manager":
        more.append(f"+datamodule.path={text_file}")
    if name == "validity":
        more.append("+datamodule.dataset_managers.test.sudoku_prediction.metrics.extra.check._target_=" + CHECK)
    if name == "coverage":
        more.append("+datamodule.dataset_managers.test.sudoku_prediction.metrics.extra.answers._target_=" + ANSWERS)
    check(f"model_type={family}", "datamodule=sudoku_4x4", option, *more)


def test_the_workspace_experiments_build(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    experiments = sorted(search.options()["experiment"])
    assert "quickstart" in experiments
    for name in experiments:
        check(f"experiment={name}")


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("model=arlm_tiny", "model"),
        ("predictor=arlm", "predictor"),
        ("collator@collators.lm=arlm_lm", "collators.lm"),
    ],
)
def test_a_part_of_another_family_is_refused_naming_those_that_fit(word, where):
    with pytest.raises(UserError, match=f"belongs to family arlm, the loss to mdlm in {where}; fix: .*mdlm_"):
        validate(compose(["model_type=mdlm", "datamodule=sudoku_4x4", word]))


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["model_type=mdlm", "predictor=mdlm_top_probability", "predictor.block_length=7"], "predictor.block_length"),
        (["model_type=mlm", "predictor.block_length=7"], "predictor.block_length"),
        (["model_type=mdlm", "predictor.guidance=1.0"], "predictor.guidance"),
    ],
)
def test_a_sampler_that_does_not_fit_the_predictions_of_a_run_is_refused_before_it_trains(words, where):
    with pytest.raises(UserError, match=where):
        check(*words, "datamodule=pcfg")


def test_puzzles_known_by_heart_are_judged_with_their_clues(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    data = build_data(compose(["experiment=quickstart", "debug=overfit"]))
    shown = {manager.full_name: manager.source.any_cell for manager in data.managers("val") + data.managers("train")}
    assert shown == {"val.sudoku": True, "val.sudoku_prediction": False, "train.sudoku": True}
