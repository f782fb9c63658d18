"""Star graphs (Bachmann and Nagarajan, 2024): find the arm of a star that ends at the goal.

The first step out of the hub can only be found by looking ahead to the arm's end, which defeats teacher-forced training
from left to right; orders that fill in the forced steps first have no such trouble.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source, distinct, in_split

_BATCH = 4000  # graphs drawn at a time, before the split takes its share


class Star:
    """Stars of one split, no two alike, and no labelled graph with its goal in two splits.

    ``degree`` arms of ``path_length - 1`` nodes leave a hub. Nodes have different random labels, edges point away from
    the hub and come in random order, the source is the hub and the goal the end of one arm.

    Args:
        split: train, val or test.
        n: Number of graphs; fewer are the beginning of more.
        degree: Arms of the star.
        path_length: Nodes on the path from the source to the goal, both included.
        n_labels: Labels are drawn from 0 .. ``n_labels`` - 1.
        seed: Chooses the graphs. It is the data set's own, not the run's.
    """

    def __init__(
        self, *, split: str, n: int = 5000, degree: int = 3, path_length: int = 5, n_labels: int = 20, seed: int = 0
    ) -> None:
        check_source(split=split, n=n, seed=seed)
        for key, value in {"degree": degree, "path_length": path_length}.items():
            if value < 2:
                raise UserError("must be at least 2", where=f"source.{key}", value=value, fix="use 2 or more")
        n_nodes = 1 + degree * (path_length - 1)
        if n_nodes > n_labels:
            raise UserError(
                f"is fewer than the graph's {n_nodes} nodes",
                where="source.n_labels",
                value=n_labels,
                fix="use more labels, or a smaller degree or path_length",
            )
        self.split, self.n, self.seed = split, n, seed
        self.degree, self.path_length, self.n_labels = degree, path_length, n_labels

    def rows(self) -> list[dict[str, str]]:
        """One row a graph; labels are words, separated by spaces.

        ``prompt`` lists the edges node by node, then the source and the goal; ``target`` the edges of the path in order
        (u1 u2 u2 u3 ...); ``text`` is both, ``fixed`` has 1 at each character of ``text`` that belongs to the prompt.
        """
        rng = np.random.default_rng([self.seed, self.degree, self.path_length, self.n_labels, SPLITS.index(self.split)])
        graphs = distinct(lambda: self._draw(rng), self.n, widen="source.n_labels")
        return [_row(prompt, target) for prompt, target in graphs]

    def _draw(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Prompts and targets of one batch of graphs that belong to this split."""
        labels = np.argsort(rng.random((_BATCH, self.n_labels)), axis=1)
        hub, arms = labels[:, :1], labels[:, 1 : 1 + self.degree * (self.path_length - 1)]
        arms = arms.reshape(_BATCH, self.degree, self.path_length - 1)  # the first arm leads to the goal
        starts = np.concatenate([np.broadcast_to(hub[:, None], (_BATCH, self.degree, 1)), arms[:, :, :-1]], axis=2)
        edges = np.stack([starts, arms], axis=-1)
        path = edges[:, 0].reshape(_BATCH, -1)
        prompt = np.concatenate([_shuffle(rng, edges.reshape(_BATCH, -1, 2)), hub, arms[:, 0, -1:]], axis=1)
        keep = in_split(np.concatenate([hub, _canonical(arms)], axis=1), self.split)
        return zip(_words(prompt[keep]), _words(path[keep]), strict=True)


def _shuffle(rng: np.random.Generator, edges: Int[np.ndarray, "rows edges 2"]) -> Int[np.ndarray, "rows nodes"]:
    """The edges of each graph in an order of its own, flattened."""
    order = np.argsort(rng.random(edges.shape[:2]), axis=1)
    return np.take_along_axis(edges, order[:, :, None], axis=1).reshape(len(edges), -1)


def _canonical(arms: Int[np.ndarray, "rows degree arm"]) -> Int[np.ndarray, "rows nodes"]:
    """The goal's arm, then the others by their first node: equal for equal graphs."""
    others = arms[:, 1:]
    order = np.argsort(others[:, :, 0], axis=1)
    others = np.take_along_axis(others, order[:, :, None], axis=1)
    return np.concatenate([arms[:, :1], others], axis=1).reshape(len(arms), -1)


def _words(labels: Int[np.ndarray, "rows nodes"]) -> list[str]:
    return [" ".join(map(str, row)) for row in labels.tolist()]


def _row(prompt: str, target: str) -> dict[str, str]:
    fixed = "1" * (len(prompt) + 1) + "0" * len(target)
    return {"text": f"{prompt} {target}", "fixed": fixed, "prompt": prompt, "target": target}


class StarCheck:
    """Whether an answer is a path: consecutive edges of the prompt's graph, from the source to the goal.

    It looks at the prompt alone, never at the stored path.
    """

    def __call__(self, example: Mapping[str, Any], prediction: str) -> bool:
        """Judge ``prediction`` as an answer to ``example["prompt"]``; the prompt may stand before it."""
        prompt, answer = example["prompt"].split(), prediction.split()
        if answer[: len(prompt)] == prompt:
            answer = answer[len(prompt) :]
        return connects(prompt, answer)


def connects(prompt: list[str], answer: list[str]) -> bool:
    """Whether the flattened edges ``answer`` lead from the source to the goal along edges of ``prompt``."""
    *flat, source, goal = prompt
    graph = set(zip(flat[::2], flat[1::2], strict=True))
    steps = list(zip(answer[::2], answer[1::2], strict=False))
    if not steps or len(answer) % 2:
        return False
    joined = all(before[1] == after[0] for before, after in pairwise(steps))
    return joined and set(steps) <= graph and steps[0][0] == source and steps[-1][1] == goal
