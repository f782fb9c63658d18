"""Text from a finished run."""

from __future__ import annotations

import json

import pytest
import xlm as package
from xlm import cli
from xlm.commands.generate import costs
from xlm.commands.prompts import as_prompt, example, read_prompts, read_template
from xlm.data.tokenizers import WordTokenizer
from xlm.errors import UserError
from xlm.trace import replay


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_prompt_is_shown_with_its_answer(xlm, trained):
    shown, answer = xlm("generate", f"checkpoint={trained}", "prompt=abba").splitlines()
    assert shown == "> abba"
    assert answer
    assert set(answer) <= set("abcd")


def test_a_checkpoint_that_is_not_there_is_refused_rather_than_replaced_by_another(xlm, trained):
    missing = trained / "checkpoints" / "nope.ckpt"
    assert "does not exist in checkpoint" in xlm("generate", f"checkpoint={missing}", code=2)


def test_nothing_asked_gives_text_without_a_prompt(xlm, trained):
    assert len(xlm("generate", f"checkpoint={trained}", "num_samples=3").splitlines()) == 3


def test_the_same_rows_for_every_batch_size_and_other_rows_for_another_seed(xlm, toy, trained):
    (toy / "asked.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "abcd"}\n{"prompt": ""}\n')
    common = ("generate", f"checkpoint={trained}", "prompts=asked.jsonl", "num_samples=4", "predictor=toy_plain")
    for name, word in {"one": "batch_size=1", "eight": "batch_size=8", "seeded": "seed=9"}.items():
        xlm(*common, word, f"output={name}.jsonl")
    one, eight, seeded = (rows(toy / f"{name}.jsonl") for name in ("one", "eight", "seeded"))
    assert one == eight
    assert [row["prediction"] for row in one] != [row["prediction"] for row in seeded]
    assert [(row["prompt"], row["sample"]) for row in one[3:6]] == [("a", 3), ("abcd", 0), ("abcd", 1)]
    assert [row["index"] for row in one] == list(range(12))
    assert len({len(row["ids"]) for row in one}) > 1


def test_the_sampler_can_be_changed_on_a_finished_run(xlm, toy, trained):
    common = ("generate", f"checkpoint={trained}", "num_samples=8")
    greedy = xlm(*common)  # as the run was made
    drawn = xlm(*common, "predictor=toy_plain")
    assert set(greedy) - {"\n"} < set(drawn) - {"\n"}
    assert set(xlm(*common, "predictor=toy_plain", "predictor.temperature=0")) == set(greedy)


def test_max_new_tokens_is_the_longest_answer(xlm, toy, trained):
    xlm("generate", f"checkpoint={trained}", "num_samples=20", "max_new_tokens=2", "output=o.jsonl")
    assert max(len(row["ids"]) for row in rows(toy / "o.jsonl")) == 2
    run = package.load(trained, ["+predictor.max_new_tokens=3"])
    assert max(len(row["ids"]) for row in run.generate(num_samples=20)) == 3
    assert run.generate(num_samples=20, max_new_tokens=2) == rows(toy / "o.jsonl")


def test_a_folder_that_is_not_there_is_refused_before_the_work(xlm, trained, monkeypatch):
    monkeypatch.setattr("xlm.commands.loading.open_run", lambda *_, **__: pytest.fail("the run was opened"))
    xlm("generate", f"checkpoint={trained}", "output=no/such/folder/x", code=2)


def test_a_text_is_taken_literally_and_cannot_command_the_terminal(xlm, toy):
    xlm("train", "experiment=toy_short", "tokenizer=byte", "trainer.max_steps=1", "run_dir=bytes")
    shown, *_ = xlm("generate", "checkpoint=bytes", "prompt=a, b=c\x1b[31m").splitlines()
    assert shown == "> a, b=c\\x1b[31m"


def test_letters_that_the_tokenizer_cannot_write_are_refused(xlm, toy, trained):
    said = xlm("generate", f"checkpoint={trained}", "prompt=axbé\x1b, x", code=2)
    assert said == (
        "error: the run's tokenizer cannot write these characters in prompt ('x' 'é' '\\x1b' ',' ' '); "
        "fix: use characters of the text that the run was trained on\n"
    )
    (toy / "asked.jsonl").write_text('{"prompt": "a"}\n{"prompt": "z"}')
    assert "in prompts ('z')" in xlm("generate", f"checkpoint={trained}", "prompts=asked.jsonl", code=2)


def test_words_that_a_word_tokenizer_does_not_know_are_its_unknown_token():
    tokenizer = WordTokenizer().build(["one two", "two three"])
    row = example(as_prompt("two four"), tokenizer, index=0, noise_key=0)
    assert row["prompt_ids"][1] == tokenizer.unk_token_id


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("datamodule=stdlib", "changes nothing here in datamodule (stdlib); fix: leave it out; `xlm eval` takes other"),
        ("+dataset_manager@datamodule.dataset_managers.test.more=toy_pairs", "changes nothing here in dataset_manager"),
        ("optimizer=adamw", None),  # as it was
        ("optimizer.lr=1", "changes nothing here in optimizer.lr (1)"),
        ("logger=none", "changes nothing here in logger (none)"),
        ("debug=overfit", "cannot be changed on a finished run in debug"),
        ("datamodule.max_length=7", None),
    ],
)
def test_what_changes_nothing_is_refused(xlm, trained, word, error):
    if error is None:
        xlm("generate", f"checkpoint={trained}", word)
    else:
        assert error in xlm("generate", f"checkpoint={trained}", word, code=2)


def test_an_evaluation_takes_data_but_nothing_of_the_training(xlm, trained):
    for word in ("callbacks=replay", "lr_scheduler.warmup_steps=3"):
        assert "changes nothing here" in xlm("eval", f"checkpoint={trained}", word, code=2)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["prompt=a", "prompts=b"], "excludes prompts in prompt"),
        (["trace=true"], "is written nowhere in trace (true); fix: add output=FILE.jsonl"),
        (["trace=true", "output=o.jsonl"], "family toy does not say how its texts come about in trace"),
        (["num_samples=0"], "must be at least 1 in num_samples (0)"),
        (["num_samples=many"], "expected int, got 'many' in num_samples"),
        (["promt=a"], "did you mean prompt?"),
        (["prompts=nowhere"], "there is no such file in prompts (nowhere)"),
        (["template=t.json"], "family toy cannot fill in gaps in template (a__b)"),
        (["prompts=t.jsonl"], "family toy cannot fill in gaps in prompts (a_)"),
        (["output=no/such/folder/x"], "there is no such folder in output (no/such/folder)"),
        (["trainer.accelerator=cuda"], "there is none in trainer.accelerator"),
        (["model.d_model=3"], "shapes the network"),
    ],
)
def test_a_mistake_is_refused(xlm, toy, trained, words, error):
    (toy / "t.json").write_text('["a", {"gap": 2}, "b"]')
    (toy / "t.jsonl").write_text('{"prompt": "a"}\n{"template": ["a", {"gap": 1}]}')
    assert error in xlm("generate", f"checkpoint={trained}", *words, code=2)


def test_traced_rows_say_how_they_came_about_whatever_the_batch(xlm, toy, trained):
    (toy / "asked.jsonl").write_text('{"prompt": "a"}\n{"prompt": "abcd"}\n{"prompt": "ab"}\n')
    common = ("generate", f"checkpoint={trained}", "prompts=asked.jsonl", "predictor=toy_traced")
    for n in (1, 2):
        xlm(*common, f"batch_size={n}", "trace=true", f"output={n}.jsonl")
    traced = rows(toy / "1.jsonl")
    assert traced == rows(toy / "2.jsonl")
    for row in traced:
        assert package.load(trained).tokenizer.decode(row["start_ids"]) == row["prompt"]
        *_, last = replay(row["trace"], row["start_ids"])
        assert last == row["start_ids"] + row["ids"]
        assert set(row["trace"][0]) == {"step", "action", "position", "token", "probability"}
    xlm(*common, "predictor.trace=true", "output=by_the_sampler.jsonl")
    assert rows(toy / "by_the_sampler.jsonl") == traced
    xlm(*common, "output=untraced.jsonl")
    assert all("trace" not in row and "start_ids" not in row for row in rows(toy / "untraced.jsonl"))


def test_a_trace_asked_for_beside_a_longest_answer_has_both(trained, toy):
    found = package.load(trained, ["predictor=toy_traced"]).generate("ab", num_samples=9, max_new_tokens=2, trace=True)
    assert {len(row["trace"]) for row in found} == {1, 2}


def test_a_line_says_what_the_texts_cost(trained, toy, capsys, monkeypatch):
    clock = iter([10.0, 10.5])
    monkeypatch.setattr("xlm.commands.generate.time.perf_counter", lambda: next(clock))
    assert cli.main(["generate", f"checkpoint={trained}", "num_samples=4", "output=o.jsonl"]) == 0
    n = sum(len(row["ids"]) for row in rows(toy / "o.jsonl"))
    said = f"4 texts, {n} network calls ({n / 4:.3g} a text), {n} tokens (1 a call, {2 * n} a second)"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_a_text_without_a_call_has_no_tokens_a_call():
    row = {"n_calls": 0, "n_new_tokens": 0}
    assert costs([row], seconds=1.0) == "1 text, 0 network calls (0 a text), 0 tokens (0 a second)"
    row = {"n_calls": 2000, "n_new_tokens": 3000}
    said = "2 texts, 4,000 network calls (2,000 a text), 6,000 tokens (1.5 a call, 12,000 a second)"
    assert costs([row, row], seconds=0.5) == said


def test_a_template_is_texts_and_gaps(tmp_path):
    asked = as_prompt(["The ", {"gap": 3}, " sat."])
    assert (asked.role, asked.text, asked.parts) == ("infill_prediction", "The ___ sat.", ("The ", 3, " sat."))
    for name, text in {"bare": '["a", {"gap": 1}]', "named": '{"template": ["a", {"gap": 1}]}'}.items():
        (tmp_path / name).write_text(text)
        assert read_template(str(tmp_path / name)).parts == ("a", 1)


class FillsGaps:
    """A collator that keeps what it was given and makes rows without a prompt of it."""

    def __init__(self, unconditional):
        self.unconditional, self.given = unconditional, []

    def __call__(self, examples):
        self.given += examples
        return self.unconditional(examples)


def test_a_gap_of_free_length_is_a_placeholder_for_families_that_can_and_refused_by_others(xlm, toy, trained):
    run = package.load(trained)
    collate = FillsGaps(run.parts.collators["unconditional"](**run._context()))
    run.parts.collators["infill_prediction"] = lambda **_: collate
    template = ["a", {"gap": None}, "bc", {"gap": None}]
    with pytest.raises(UserError, match=r"family toy fills gaps of a given size only in prompt \(a…bc…\)"):
        run.generate([["a", {"gap": 2}], template])
    collate.free_gaps = True
    assert run.generate([template])[0]["prompt"] == "a…bc…"
    (row,) = collate.given
    assert row["fixed"] == [True, False, True, True, False]
    assert row["free"] == [False, True, False, False, True]
    collate.given.clear()
    (filled,) = run.generate([["a", {"gap": 2}]])
    assert filled["n_new_tokens"] == len(filled["ids"]) - 1  # "a" was given
    assert "free" not in collate.given[0]


@pytest.mark.parametrize("template", [["a"], ["a", 3], ["a", {"gap": 0}], ["a", {"gap": True}], ["a", {"gap": "1"}]])
def test_a_template_that_means_nothing_is_refused(template):
    with pytest.raises(UserError, match="in prompt"):
        as_prompt(template)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "has no rows"),
        ('{"prompt": "a"}\n{"prompt": ', r"no JSON.*in .*:2"),
        ('{"promt": "a"}', r"no prompt in .*:1"),
        ('{"prompt": "a", "template": []}', r"no prompt in .*:1"),
        ('{"prompt": 3}', r"no prompt in .*:1 \(3\)"),
        ('["a"]', r"no prompt in .*:1"),
    ],
)
def test_a_bad_file_of_prompts_names_its_line(tmp_path, text, error):
    (tmp_path / "asked.jsonl").write_text(text)
    with pytest.raises(UserError, match=error):
        read_prompts(str(tmp_path / "asked.jsonl"))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "asked.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(UserError, match=r"asked\.jsonl"):
        read_prompts(str(tmp_path / "asked.jsonl"))


def test_load_gives_the_parts_and_generates_as_the_command_does(xlm, toy, trained):
    run = package.load(trained, ["predictor=toy_plain"])
    assert run.model.head.weight.shape == (len(run.tokenizer), 16)
    assert not run.model.training
    assert run.predictor.filter.temperature == 1
    assert run.weights.kind == "ema"
    xlm("generate", f"checkpoint={trained}", "predictor=toy_plain", "prompt=ab", "num_samples=2", "output=o.jsonl")
    assert run.generate("ab", num_samples=2) == rows(toy / "o.jsonl")
    assert [row["prompt"] for row in run.generate(["a", "b"], batch_size=1)] == ["a", "b"]
