"""Star graphs (Bachmann and Nagarajan, 2024): find the path through a hub that ends at the goal.

The step out of the hub can only be found by looking ahead to a path's end, which defeats teacher-forced training from
left to right; orders that fill in the forced steps first have no such trouble. Where paths also lead into the hub and
differ in length (Patel et al., 2025), neither the place nor the number of the hard steps is known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source, distinct, in_split

_BATCH = 4000  # graphs drawn at a time, before the split takes its share


class Star:
    """Stars of one split, no two alike, and no labelled graph with its source and goal in two splits.

    ``degree`` directed paths share one node, the hub, and nothing else. Nodes have different random labels, edges come
    in random order; the source is the first node of one of the paths and the goal the last node of the same path.

    Args:
        split: train, val or test.
        n: Number of graphs; fewer are the beginning of more.
        degree: Paths through the hub.
        path_length: Nodes on every path, both ends and the hub included; two numbers are the fewest and the most, each
            length between them equally likely for each path.
        plan: Fewest steps from the hub to the end of a path; the hub is, equally likely, at any place of the path that
            leaves so many. Null: the hub is the first node of every path, and so the source.
        n_labels: Labels are drawn from 0 .. ``n_labels`` - 1.
        seed: Chooses the graphs. It is the data set's own, not the run's.
    """

    def __init__(
        self,
        *,
        split: str,
        n: int = 5000,
        degree: int = 3,
        path_length: int | Sequence[int] = 5,
        plan: int | None = None,
        n_labels: int = 20,
        seed: int = 0,
    ) -> None:
        check_source(split=split, n=n, seed=seed)
        lengths = (path_length,) if isinstance(path_length, int) else tuple(path_length)
        self.fewest, self.most = lengths[0], lengths[-1]
        _check(degree=degree, lengths=lengths, plan=plan, n_labels=n_labels)
        self.split, self.n, self.seed = split, n, seed
        self.degree, self.path_length, self.plan, self.n_labels = degree, path_length, plan, n_labels
        self._key = [seed, degree, *lengths, n_labels, SPLITS.index(split), *([] if plan is None else [plan])]

    def rows(self) -> list[dict[str, str]]:
        """One row a graph; labels are words, separated by spaces.

        ``prompt`` lists the edges node by node, then the source and the goal; ``target`` the edges of the path in order
        (u1 u2 u2 u3 ...); ``text`` is both, ``fixed`` has 1 at each character of ``text`` that belongs to the prompt.
        """
        labels, shapes = np.random.default_rng(self._key), np.random.default_rng([*self._key, 1])
        graphs = distinct(lambda: self._draw(labels, shapes), self.n, widen="source.n_labels")
        return [_row(prompt, target) for prompt, target in graphs]

    def _draw(self, rng: np.random.Generator, shapes: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Prompts and targets of one batch of graphs that belong to this split; no label stands where there is no node.

        The first path is the one from the source to the goal.
        """
        none = self.n_labels
        labels = np.argsort(rng.random((_BATCH, self.n_labels)), axis=1)
        hub, others = labels[:, :1], labels[:, 1 : 1 + self.degree * (self.most - 1)]
        others = others.reshape(_BATCH, self.degree, self.most - 1)  # of each path, the nodes beside the hub
        length = shapes.integers(self.fewest, self.most + 1, (_BATCH, self.degree, 1))
        place = shapes.integers(0, length - self.plan) if self.plan is not None else np.zeros_like(length)

        step = np.arange(self.most)
        nodes = np.take_along_axis(others, np.clip(step - (step > place), 0, self.most - 2), axis=2)
        nodes = np.where(step == place, hub[:, None], nodes)
        paths = np.where(step < length, nodes, none)
        goal = np.take_along_axis(paths[:, 0], length[:, 0] - 1, axis=1)
        edges = np.stack([paths[:, :, :-1], paths[:, :, 1:]], axis=-1)
        edges[edges[..., 1] == none] = none

        after = np.take_along_axis(paths, np.minimum(step[1:] + place, self.most - 1), axis=2)
        codes = [hub, _sorted_but_first(np.where(step[1:] + place < length, after, none))]
        if self.plan is not None:
            codes.append(_sorted_but_first(np.where(step[:-1] < place, paths[:, :, :-1], none)))
        keep = in_split(np.concatenate(codes, axis=1), self.split)
        prompt = np.concatenate([_shuffle(rng, edges.reshape(_BATCH, -1, 2), none), paths[:, 0, :1], goal], axis=1)
        path = edges[:, 0].reshape(_BATCH, -1)
        return zip(_words(prompt[keep], none), _words(path[keep], none), strict=True)


def _check(*, degree: int, lengths: Sequence[int], plan: int | None, n_labels: int) -> None:
    """Refuse graphs that cannot be."""
    if degree < 2:
        raise UserError("must be at least 2", where="source.degree", value=degree, fix="use 2 or more")
    if len(lengths) not in (1, 2) or not 2 <= lengths[0] <= lengths[-1]:
        what = "must be a number of at least 2, or two such numbers in order"
        raise UserError(what, where="source.path_length", value=list(lengths), fix="for example path_length=[3,6]")
    if plan is not None and not 1 <= plan < lengths[0]:
        what = f"must be from 1 to {lengths[0] - 1}: the shortest path has {lengths[0]} nodes"
        raise UserError(what, where="source.plan", value=plan, fix="change it, or path_length")
    n_nodes = 1 + degree * (lengths[-1] - 1)
    if n_nodes > n_labels:
        raise UserError(
            f"is fewer than the largest graph's {n_nodes} nodes",
            where="source.n_labels",
            value=n_labels,
            fix="use more labels, or a smaller degree or path_length",
        )


def _shuffle(
    rng: np.random.Generator, edges: Int[np.ndarray, "rows edges 2"], none: int
) -> Int[np.ndarray, "rows nodes"]:
    """The edges of each graph in an order of its own, flattened; those that are none come last."""
    order = np.argsort(rng.random(edges.shape[:2]) + (edges[..., 0] == none), axis=1)
    return np.take_along_axis(edges, order[:, :, None], axis=1).reshape(len(edges), -1)


def _sorted_but_first(arms: Int[np.ndarray, "rows degree arm"]) -> Int[np.ndarray, "rows nodes"]:
    """The first arm, then the others by their first node: equal for equal graphs."""
    others = arms[:, 1:]
    order = np.argsort(others[:, :, 0], axis=1)
    others = np.take_along_axis(others, order[:, :, None], axis=1)
    return np.concatenate([arms[:, :1], others], axis=1).reshape(len(arms), -1)


def _words(labels: Int[np.ndarray, "rows nodes"], none: int) -> list[str]:
    return [" ".join(str(label) for label in row if label != none) for row in labels.tolist()]


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
