"""Every task in debug=overfit: does a tiny network of each family learn a few examples by heart, as far as possible?

    OMP_NUM_THREADS=1 python benchmarks/overfit_tasks.py [--tasks hmm star_small] [--families arlm mdlm] [--jobs 2]

Tasks with an answer are learnt where every answer is right. Of what has no prompt the optimum is the entropy of the
examples, log(n) for n different ones; nats a token must come within 0.05 of it. MLM and MDLM cannot reach it: their
networks know places only relative to other tokens, so as long as everything is hidden all places look alike to them.
That costs the mutual information of place and token once a text, which is added to their optimum here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from xlm.cli import main as xlm

CLOSE = 0.05
"""Nats a token above the optimum that still count as learnt: the noise of a bound is a part of that."""

PACE = {"arlm": 1 / 3, "ilm": 2}
"""Steps in proportion: ARLM learns every token of an example in each, ILM sees the fewest of its many states."""

PLACELESS = ("mdlm", "mlm")
UNPROMPTED = ("hmm", "pcfg", "text")
"""Sources of texts alone: placeless networks, which must read places off other tokens, take three times the steps."""

TINY = ("model.d_model=64", "model.n_layers=2", "model.n_heads=2", "trainer.precision=32-true")
WIDER = ("model.d_model=128", "model.n_layers=3")
SHORT = (
    "harness.likelihood_draws=128",
    "trainer.enable_progress_bar=false",
    "logger=none",
    "callbacks.saver.every=100000",
)


class Task(NamedTuple):
    """A datamodule, its training data set, and what is set for a run of seconds."""

    name: str
    source: str
    overrides: tuple[str, ...] = ()
    steps: int = 600
    examples: int = 4
    ilm: tuple[str, ...] = ()
    """Set for ILM alone, where many tokens can be missing in many ways."""

    @property
    def few(self) -> tuple[str, ...]:
        """A source of few rows, where it is generated."""
        generated = () if self.source in ("text", "pairs") else ("source.n=64",)
        return tuple(
            f"datamodule.dataset_managers.train.{self.source}.{word}" for word in (*generated, f"limit={self.examples}")
        )

    def steps_of(self, family: str) -> int:
        """Optimizer steps that a family needs, with some to spare."""
        pace = 3 if family in PLACELESS and self.source in UNPROMPTED else PACE.get(family, 1)
        return round(self.steps * pace)


def tasks(folder: Path) -> list[Task]:
    """All that ship, the largest first, with files for those that read some."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "box"]
    lines = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 20)) for i in range(1, 60)]
    rows = [{"text": line, "prompt": f"{i}*7=", "target": str(7 * i)} for i, line in enumerate(lines)]
    (folder / "words.txt").write_text("\n\n".join(lines))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "hub").mkdir()  # a folder laid out as a repository of the Hub
    for split in ("train", "validation", "test"):
        (folder / "hub" / f"{split}.jsonl").write_text((folder / "rows.jsonl").read_text())
    longer = ("trainer.max_steps=2400",)
    window, table = ("datamodule.max_length=16",), f"datamodule.path={folder / 'rows.jsonl'}"
    return [
        *(
            Task(f"sudoku_{name}", "sudoku", (), 800, 2, (*longer, *WIDER))
            for name in ("9x9", "easy", "medium", "hard")
        ),
        Task("star_hard", "star", steps=800, examples=2),
        Task("addition", "addition"),
        Task("addition_reversed", "addition"),
        Task("n_queens", "n_queens"),
        Task("graph_colouring", "graph_colouring"),
        Task("sudoku_4x4", "sudoku"),
        Task("star_small", "star"),
        Task("star_easy", "star"),
        Task("hmm", "hmm", steps=1000, examples=2),
        Task("pcfg", "pcfg", steps=1000, examples=2),
        Task("stdlib", "text", window, 1000, 2),
        Task("text", "text", (*window, f"datamodule.path={folder / 'words.txt'}"), 1000, 2),
        Task("table", "text", (*window, table), 1000, 2),
        Task("hub", "text", (*window, f"datamodule.path={folder / 'hub'}"), 1000, 2),
        Task("pairs", "pairs", ("datamodule.max_length=32", "datamodule.max_target_length=8", table)),
        Task("star_medium", "star", ilm=longer),
        Task("sudoku_6x6", "sudoku", ilm=longer),
    ]


class Outcome(NamedTuple):
    """What a run reached and what it could."""

    measure: str
    reached: float
    optimum: float
    learnt: bool


def overfit(task: Task, family: str, folder: Path, more: Sequence[str] = ()) -> Outcome:
    """Train, test, compare."""
    run = folder / f"{task.name}-{family}"
    words = [f"model_type={family}", f"datamodule={task.name}", "debug=overfit", f"run_dir={run}", *TINY, *SHORT]
    words += ["datamodule.global_batch_size=16", f"trainer.max_steps={task.steps_of(family)}", "optimizer.lr=3e-3"]
    words += [*task.few, *task.overrides, *(task.ilm if family == "ilm" else ()), *more]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = xlm(["train", *words])
    if code:
        raise SystemExit(said.getvalue())
    results = json.loads((run / "results.json").read_text())
    return judge(results, placeless(words) if family in PLACELESS else 0.0)


def judge(results: dict[str, Any], excess: float) -> Outcome:
    """Answers right, where there are answers; nats a token of the examples otherwise."""
    tested = {name: values for name, values in results.items() if name.startswith("test.")}
    for measure in ("validity", "exact_match"):
        for name, values in tested.items():
            if measure in values and name != "test.samples":
                return Outcome(measure, values[measure], 1.0, values[measure] == 1.0)
    values = next(values for values in tested.values() if "nats_per_token" in values)
    reached, optimum = values["nats_per_token"], values["optimum_nats_per_token"] + excess
    return Outcome("nats_per_token", reached, optimum, abs(reached - optimum) < CLOSE)


def placeless(words: list[str]) -> float:
    """Mutual information of place and token over the tokens of a text, nats: H(token) - mean of H(token | place).

    0 for texts after a prompt, whose tokens say where a place is.
    """
    from xlm.commands.assemble import assemble
    from xlm.config import compose

    config = compose(words)
    data = assemble(config, splits=("train",)).datamodule
    manager = data.managers("train")[0]
    if manager.role != "lm":
        return 0.0
    batch = next(iter(data._sequential("train")[0]))  # the texts as the network has them, fill included
    rows, n_tokens = batch["target_ids"].tolist(), float(batch["n_tokens"].double().mean())
    everywhere = [token for row in rows for token in row]
    at_places = sum(entropy(place) for place in zip(*rows, strict=True)) / len(rows[0])
    return (entropy(everywhere) - at_places) / n_tokens


def entropy(tokens: Sequence[int]) -> float:
    """Of the frequencies of tokens, nats."""
    return -sum(n / len(tokens) * math.log(n / len(tokens)) for n in Counter(tokens).values())


def chosen(names: Sequence[str] | None, folder: Path) -> Iterator[Task]:
    """The tasks asked for, or all."""
    return (task for task in tasks(folder) if not names or task.name in names)


def measured(task: Task, family: str, folder: Path, more: Sequence[str]) -> tuple[Outcome, float]:
    """The outcome, and the CPU seconds it took."""
    before = time.process_time()
    return overfit(task, family, folder, more), time.process_time() - before


def main() -> int:
    """Run all, print a line each; 1 where one was not learnt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--families", nargs="*", default=["arlm", "mdlm", "ilm"])
    parser.add_argument("--set", nargs="*", default=[], help="further overrides")
    parser.add_argument("--jobs", type=int, default=1, help="processes; a run is in one")
    asked = parser.parse_args()
    print(
        f"torch {torch.__version__.split('+')[0]}, {torch.get_num_threads()} thread a run, {asked.jobs} runs at a time"
    )
    print(f"{'task':18} {'family':6} {'measure':15} {'reached':>8} {'optimum':>8}  learnt  CPU s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(XLM_CACHE_DIR=f"{folder}/xlm", HF_DATASETS_CACHE=f"{folder}/datasets")  # nothing prepared
        pairs = [(task, family) for task in chosen(asked.tasks, folder) for family in asked.families]
        with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
            runs = [pool.submit(measured, task, family, folder, asked.set) for task, family in pairs]
            for (task, family), run in zip(pairs, runs, strict=True):
                outcome, seconds = run.result()
                numbers = f"{outcome.reached:8.4f} {outcome.optimum:8.4f}  {'yes' if outcome.learnt else 'NO':6}"
                print(f"{task.name:18} {family:6} {outcome.measure:15} {numbers}  {seconds:.0f}", flush=True)
    finished = [run.result() for run in runs]
    learnt = sum(outcome.learnt for outcome, _ in finished)
    print(f"{learnt} of {len(finished)} learnt, {sum(seconds for _, seconds in finished):.0f} CPU s")
    return int(learnt < len(finished))


if __name__ == "__main__":
    sys.exit(main())
