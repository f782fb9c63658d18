"""The toy family generates control tokens, which a generic oracle notices, and offers no oracle case of its own."""

from __future__ import annotations

import json
import math

import pytest
from xlm import registry
from xlm.testing.oracles import Measured, Mutation, Oracle, OracleCase

HALF = {"xlm.sampling.TokenFilter.__call__": lambda _: lambda self, logits: logits / 2}


def measure_a_filter():
    import torch
    from xlm.sampling import TokenFilter

    return Measured(float((TokenFilter()(torch.ones(2)) - 1).abs().max()), 0.1, "logits")


def good():
    oracles = [
        Oracle("a filter that keeps everything changes nothing", measure_a_filter),
        Oracle("a slow one", lambda: Measured(0.0, 0.0, "hours"), slow=True),
    ]
    return OracleCase(oracles, [Mutation("logits are halved", HALF, oracles[0].name)])


def bad():
    return OracleCase([Oracle("pigs fly", lambda: Measured(math.nan, 1.0, "metres"))])


def blind():
    return OracleCase([Oracle("sleeps", lambda: Measured(0.0, 1.0, ""))], [Mutation("halved", HALF, "sleeps")])


def breaking():
    def measure():
        import torch
        from xlm.sampling import TokenFilter

        assert TokenFilter()(torch.ones(2)).sum() == 2, "the filter halves"
        return Measured(0.0, 1.0, "")

    return OracleCase([Oracle("breaks under the fault", measure)], [Mutation("x", HALF, "breaks under the fault")])


def broken():
    def measure():
        raise IndexError("no row 7")

    return OracleCase([Oracle("breaks off", measure)])


@pytest.fixture
def offer(monkeypatch):
    """Let ``core`` be the case that a function of this module makes."""

    def offered(function):
        cases = {"core": f"{function.__module__}:{function.__name__}"}
        monkeypatch.setattr(registry, "oracle_cases", lambda: cases)
        monkeypatch.setitem(__import__("sys").modules, function.__module__, __import__("sys").modules[__name__])

    return offered


def test_what_holds_is_shown_with_its_error_and_written(xlm, offer, toy, results):
    offer(good)
    out = xlm("verify", "model_type=core", "output=checked")
    assert "a filter that keeps everything changes nothing" in out
    assert "2 of 2 oracles hold" in out
    first, _ = results(toy / "checked")["core"]["oracles"]
    assert (first["error"], first["tolerance"], first["unit"], first["passed"]) == (0.0, 0.1, "logits", True)
    assert results(toy / "checked")["core"]["mutations"] == []


@pytest.mark.parametrize("word", ["--fast", "fast=true"])
def test_fast_leaves_slow_oracles_out_and_says_so(xlm, offer, word):
    offer(good)
    out = xlm("verify", "model_type=core", word)
    assert "1 of 1 oracles hold" in out
    assert "a slow one: slow" in out


def test_faults_are_listed_with_who_noticed_them_and_by_how_much(xlm, offer, toy, results):
    offer(good)
    out = xlm("verify", "model_type=[core]", "mutations=true", "output=checked")
    assert "1 of 1 faults noticed" in out
    (fault,) = results(toy / "checked")["core"]["mutations"]
    assert (fault["fault"], fault["error"]) == ("logits are halved", 0.5)


@pytest.mark.parametrize(
    ("case", "words", "said"),
    [
        (bad, [], "FAIL"),
        (blind, ["mutations=true"], "MISSED"),
        (breaking, ["mutations=true"], "MISSED"),
        (broken, [], "IndexError: no row 7"),
    ],
)
def test_what_does_not_hold_is_exit_code_1(xlm, offer, case, words, said, capsys):
    offer(case)
    xlm("verify", "model_type=core", *words, code=1)


def test_a_family_without_a_case_is_checked_as_far_as_that_goes(xlm, toy, results):
    xlm("verify", "model_type=toy", "output=checked", code=1)
    found = results(toy / "checked")["toy"]
    verdicts = {line["name"]: line["passed"] for line in found["oracles"]}
    assert verdicts["lm: the gradient of the loss is that of finite differences"]
    assert not verdicts["seq2seq_prediction: nothing is generated that the likelihood leaves out"]
    assert "laws of the samplers, against enumeration: no oracle case" in found["skipped"]


def test_a_case_that_cannot_be_made_is_one_line(xlm, monkeypatch):
    monkeypatch.setattr(registry, "oracle_cases", lambda: {"core": "xlm.no_such_module:case"})
    assert "no oracle case" in xlm("verify", "model_type=core", code=2)


def test_an_unknown_family_names_those_that_are_there(xlm):
    out = xlm("verify", "model_type=toi", code=2)
    assert "no such family in model_type (toi); fix: choose from core, " in out
    assert "toy" in out


@pytest.mark.parametrize("word", ["model_type=", "model_type=[]"])
def test_to_check_nothing_is_no_success(xlm, word):
    assert "names no family" in xlm("verify", word, code=2)


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(xlm, offer, toy):
    offer(broken)
    (toy / "file").touch()
    assert "cannot be made (Not a directory) in output (file/inside)" in xlm(
        "verify", "model_type=core", "output=file/inside", code=2
    )


def test_an_unknown_key_is_refused_before_any_work(xlm):
    assert "did you mean mutations?" in xlm("verify", "mutation=true", code=2)


def test_results_are_json_whatever_was_measured(xlm, offer, toy):
    offer(bad)
    xlm("verify", "model_type=core", "output=checked", code=1)
    content = json.loads((toy / "checked" / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["core"]["oracles"][0]["error"] == "nan"
    assert not content["core"]["passed"]
