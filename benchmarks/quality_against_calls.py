"""Quality of a run's samples against the network calls that they take, for a list of samplers: a table and a plot.

    python benchmarks/quality_against_calls.py RUN --samplers benchmarks/samplers/sudoku.yaml --output sudoku
    python benchmarks/quality_against_calls.py RUN --samplers benchmarks/samplers/text.yaml --judge RUN --output text

writes OUTPUT.csv and OUTPUT.png. A sampler is a name and overrides of `xlm eval`; a value with commas is a curve.

Without a judge the run's task is asked its test puzzles, and the quality is ``exact_match``. With a judge the run fills
windows of ``datamodule.max_length`` tokens, and the quality is what they cost under the judge, a run of another family
(ARLM: exactly) trained on the same text with the same tokenizer: nats a token, beside which stand the entropy within a
text and distinct n-grams, for repetitive text is cheap. The judge's own test windows are the reference. Calls are the
mean over texts of the calls in which a text took part.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
import torch
import xlm
import yaml
from xlm.cli import main as command
from xlm.commands.loading import LoadedRun, open_run, run_config
from xlm.config.overrides import expand
from xlm.metrics import SampleStatistics

mpl.use("Agg")
from matplotlib import pyplot as plt

BATCH = 64
Row = dict[str, Any]


# Puzzles


def answers(run: str, words: Sequence[str]) -> Row:
    """What `xlm eval` says of the run's first prediction set."""
    with tempfile.TemporaryDirectory() as folder:
        code = command(
            ["eval", f"checkpoint={run}", f"run_dir={folder}/eval", "trainer.enable_progress_bar=false", *words]
        )
        if code:
            raise SystemExit(code)
        results = json.loads((Path(folder) / "eval" / "results.json").read_text())
    values = next(values for values in results.values() if isinstance(values, dict) and "exact_match" in values)
    kept = ("exact_match", "exact_match_se", "token_accuracy", "token_accuracy_se")
    return {"n": values["n_examples"], "calls": values["n_calls"], **{name: values[name] for name in kept}}


# Texts


class Judge:
    """Another run, which says what texts cost."""

    def __init__(self, run: str) -> None:
        self.run = open_run(run_config([f"checkpoint={run}"]), splits=("test",))
        self.size = self.run.parts.datamodule.max_length

    def reference(self, n: int) -> Row:
        """Of the judge's own test set ``n`` whole windows, evenly spread, or all of them."""
        managers, loaders = self.run.parts.datamodule.managers("test"), self.run.parts.datamodule.test_dataloader()
        loader = next(loader for manager, loader in zip(managers, loaders, strict=True) if manager.kind == "loss")
        ids = [row.tolist() for batch in loader for row in batch["target_ids"]]
        pad = self.run.tokenizer.pad_token_id
        whole = [row for row in ids if pad not in row and len(row) == self.size]
        return self.measure(whole[:: max(1, len(whole) // n)][:n])

    def measure(self, ids: list[list[int]]) -> Row:
        """Nats a token, entropy within a text, and distinct n-grams, with standard errors."""
        collate = self.run.parts.collators["lm"](
            tokenizer=self.run.tokenizer, max_length=self.size, event_space="window"
        )
        costs: list[float] = []
        for start in range(0, len(ids), BATCH):
            examples = [
                {"input_ids": row, "index": i, "noise_key": i} for i, row in enumerate(ids[start : start + BATCH])
            ]
            with torch.inference_mode():
                likelihood = self.run.predictor.log_likelihood(collate(examples))
            assert likelihood["kind"] == "exact", "the judge must know likelihoods exactly"
            costs += (likelihood["nll"] / likelihood["n_tokens"]).tolist()
        statistics = SampleStatistics(repetition=(4,), distinct=(2, 3))
        statistics.update([], [{"ids": row} for row in ids])
        found = {name: value for name, value in statistics.compute().items() if not name.startswith("length")}
        return {"n": len(ids), "nats": mean(costs), "nats_se": stdev(costs) / math.sqrt(len(costs)), **found}


def texts(run: str, judge: Judge, n: int, words: Sequence[str]) -> Row:
    """What the judge says of windows that the run fills in from nothing."""
    loaded: LoadedRun = xlm.load(run, words)
    if loaded.tokenizer.get_vocab() != judge.run.tokenizer.get_vocab():
        raise SystemExit("the judge has another tokenizer")
    rows = loaded.generate([[{"gap": judge.size}]], num_samples=n, batch_size=BATCH)
    calls = mean(row["n_calls"] for row in rows)
    return {"calls": calls, **judge.measure([row["ids"] for row in rows])}


# Table and plot


def points(samplers: dict[str, list[str]], common: list[str], measure: Callable[[list[str]], Row]) -> Iterator[Row]:
    """A row for every setting of every sampler."""
    for name, words in samplers.items():
        for setting in expand(words):
            row = {"sampler": name, "overrides": " ".join(setting), **measure([*setting, *common])}
            print(
                {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True
            )
            yield row


def write(path: Path, rows: list[Row]) -> None:
    """Rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )


def plot(path: Path, rows: list[Row], qualities: dict[str, str]) -> None:
    """A panel a quality, a line a sampler; the row without calls is a dashed line."""
    figure, axes = plt.subplots(1, len(qualities), figsize=(1.8 + 4.2 * len(qualities), 4.2), squeeze=False)
    reference = next((row for row in rows if row.get("calls") is None), None)
    for axis, (quality, label) in zip(axes[0], qualities.items(), strict=True):
        for i, name in enumerate(dict.fromkeys(row["sampler"] for row in rows if row is not reference)):
            curve = sorted((row for row in rows if row["sampler"] == name), key=lambda row: row["calls"])
            x, y = [row["calls"] for row in curve], [row[quality] for row in curve]
            error = [row[f"{quality}_se"] for row in curve]
            axis.errorbar(x, y, error, marker="os^Dv<>P"[i % 8], markersize=4, linewidth=1.3, capsize=2, label=name)
        if reference:
            axis.axhline(reference[quality], color="black", linestyle="--", linewidth=1, label=reference["sampler"])
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel="network calls a text", title=label)
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.75 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--samplers", type=Path, required=True, help="YAML: common: [...], samplers: {name: [...]}")
    parser.add_argument("--judge", help="a run that says what texts cost")
    parser.add_argument("--texts", type=int, default=128, help="with a judge")
    parser.add_argument("--output", type=Path, required=True, help="without .csv and .png")
    args = parser.parse_args()
    settings = yaml.safe_load(args.samplers.read_text())
    if args.judge:
        judge = Judge(args.judge)
        rows = [{"sampler": "test text", "overrides": "", "calls": None, **judge.reference(args.texts)}]
        qualities = {"nats": "nats a token under the judge", "sample_entropy": "entropy within a text, nats"}
        measure = lambda words: texts(args.run, judge, args.texts, words)  # noqa: E731
    else:
        rows, qualities = [], {"exact_match": "share of puzzles solved"}
        measure = lambda words: answers(args.run, words)  # noqa: E731
    rows += points(settings["samplers"], settings["common"], measure)
    write(args.output.with_suffix(".csv"), rows)
    plot(args.output.with_suffix(".png"), rows, qualities)


if __name__ == "__main__":
    main()
