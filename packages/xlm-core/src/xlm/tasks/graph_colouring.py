"""Graphs whose nodes are to be coloured so that no edge joins two of one colour: many right answers to each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations, product
from string import ascii_lowercase
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source, distinct, in_split

_BATCH = 1000  # graphs drawn at a time, before the split takes its share
_MOST_COLOURINGS = 3**8  # of which every one is tried


class GraphColouring:
    """Graphs of one split with one of their colourings each, no two pairs alike, and no labelled graph in two splits.

    Graphs are uniform among those of so many nodes and edges that can be coloured, and the stored answer is any of a
    graph's colourings with equal probability.

    Args:
        split: train, val or test.
        n: Number of graphs; fewer are the beginning of more.
        nodes: Nodes of each graph, numbered from 1.
        edges: Edges of each graph.
        colours: Colours, the letters from a on; an answer need not use all.
        samples: Ask for every graph so many times in a row, for ``xlm.metrics.Coverage``.
        seed: Chooses the graphs. It is the data set's own, not the run's.
    """

    def __init__(
        self,
        *,
        split: str,
        n: int = 1000,
        nodes: int = 7,
        edges: int = 9,
        colours: int = 3,
        samples: int = 1,
        seed: int = 0,
    ) -> None:
        check_source(split=split, n=n, seed=seed)
        if nodes < 2 or colours < 2 or colours**nodes > _MOST_COLOURINGS:
            what = f"of {colours} colours: 2 or more of each, and no more than {_MOST_COLOURINGS:,} colourings to try"
            raise UserError(what, where="source.nodes", value=nodes, fix="use fewer, for example 7 nodes of 3 colours")
        sizes = [nodes // colours + (i < nodes % colours) for i in range(colours)]
        most = (nodes * nodes - sum(size * size for size in sizes)) // 2  # of Turan's graph
        if not 1 <= edges <= most:
            what = f"must be from 1 to {most}: with more, no graph of {nodes} nodes has {colours} colours"
            raise UserError(what, where="source.edges", value=edges, fix="change edges, nodes or colours")
        if samples < 1:
            raise UserError("must be at least 1", where="source.samples", value=samples, fix="use 1 or more")
        self.split, self.n, self.seed, self.samples = split, n, seed, samples
        self.nodes, self.edges, self.colours = nodes, edges, colours

    def rows(self) -> list[dict[str, str]]:
        """One row a time that a graph is asked for; words are separated by spaces.

        ``prompt`` has the number of nodes and then the edges in order, ``target`` the colours of nodes 1, 2, ...;
        ``text`` is both, ``fixed`` has 1 at each character of ``text`` that belongs to the prompt.
        """
        key = [self.seed, self.nodes, self.edges, self.colours, SPLITS.index(self.split)]
        rng = np.random.default_rng(key)
        both = distinct(lambda: self._draw(rng), self.n, widen="source.nodes")
        return [_row(text, target) for text, target in both for _ in range(self.samples)]

    def _draw(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Texts and targets of one batch of graphs that belong to this split."""
        pairs = _pairs(self.nodes)
        order = np.argsort(rng.random((_BATCH, len(pairs))), axis=1)
        chosen = np.zeros((_BATCH, len(pairs)), dtype=bool)
        np.put_along_axis(chosen, order[:, : self.edges], True, axis=1)
        proper = _proper(chosen, self.nodes, self.colours)
        rank = np.floor(rng.random(_BATCH) * proper.sum(1))
        answer = (proper.cumsum(1) > rank[:, None]).argmax(1)
        for i in np.flatnonzero(proper.any(1) & in_split(chosen.astype(np.int64), self.split)):
            graph = [self.nodes, *(node for edge in pairs[chosen[i]].tolist() for node in edge)]
            target = " ".join(_colourings(self.nodes, self.colours)[answer[i]])
            yield f"{' '.join(map(str, graph))} {target}", target


@cache
def _pairs(nodes: int) -> Int[np.ndarray, "pairs 2"]:
    """Every possible edge."""
    return np.array(list(combinations(range(1, nodes + 1), 2)))


@cache
def _colourings(nodes: int, colours: int) -> list[str]:
    """Every way to colour the nodes, proper or not."""
    return ["".join(letters) for letters in product(ascii_lowercase[:colours], repeat=nodes)]


@cache
def _conflicts(nodes: int, colours: int) -> Float32[np.ndarray, "pairs colourings"]:
    """1 where a colouring gives both nodes of a pair the same colour."""
    letters = np.array([list(colouring) for colouring in _colourings(nodes, colours)])
    first, second = _pairs(nodes).T - 1
    conflicts: Float32[np.ndarray, "pairs colourings"] = (letters[:, first] == letters[:, second]).T.astype(np.float32)
    return conflicts


def _proper(chosen: Bool[np.ndarray, "rows pairs"], nodes: int, colours: int) -> Bool[np.ndarray, "rows colourings"]:
    """Which colourings fit the chosen edges of each graph."""
    proper: Bool[np.ndarray, "rows colourings"] = chosen.astype(np.float32) @ _conflicts(nodes, colours) == 0
    return proper


class Colourings:
    """All answers to a question: every proper colouring of the prompt's graph.

    Args:
        colours: Colours, the letters from a on.
    """

    def __init__(self, *, colours: int = 3) -> None:
        self.colours = colours

    def __call__(self, example: Mapping[str, Any]) -> frozenset[str]:
        """The answers to ``example["prompt"]``."""
        return _all_answers(example["prompt"], self.colours)


@cache
def _all_answers(prompt: str, colours: int) -> frozenset[str]:
    nodes, edges = parse(prompt)
    every = product(ascii_lowercase[:colours], repeat=nodes)
    return frozenset(" ".join(letters) for letters in every if all(letters[a - 1] != letters[b - 1] for a, b in edges))


class ColouringCheck:
    """Whether an answer gives every node one of the colours, and the ends of each of the prompt's edges different ones.

    Args:
        colours: Colours, the letters from a on.
    """

    def __init__(self, *, colours: int = 3) -> None:
        self.colours = colours

    def __call__(self, example: Mapping[str, Any], prediction: str) -> bool:
        """Judge ``prediction`` as an answer to ``example["prompt"]``; the prompt may stand before it."""
        nodes, edges = parse(example["prompt"])
        answer = prediction.removeprefix(example["prompt"]).split()
        known = set(answer) <= set(ascii_lowercase[: self.colours])
        return len(answer) == nodes and known and all(answer[a - 1] != answer[b - 1] for a, b in edges)


def parse(prompt: str) -> tuple[int, list[tuple[int, int]]]:
    """Number of nodes, and edges.

    >>> parse("3 1 2 2 3")
    (3, [(1, 2), (2, 3)])
    """
    nodes, *ends = map(int, prompt.split())
    return nodes, list(zip(ends[::2], ends[1::2], strict=True))


def _row(text: str, target: str) -> dict[str, str]:
    fixed = "1" * (len(text) - len(target)) + "0" * len(target)
    return {"text": text, "fixed": fixed, "prompt": text.removesuffix(f" {target}"), "target": target}
