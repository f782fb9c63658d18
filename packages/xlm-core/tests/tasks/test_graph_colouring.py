from __future__ import annotations

import contextlib
from itertools import combinations, product

import pytest
from xlm.errors import UserError
from xlm.tasks.graph_colouring import ColouringCheck, Colourings, GraphColouring, parse
from xlm.tasks.splits import SPLITS


@pytest.fixture(scope="module")
def rows():
    return GraphColouring(split="train", n=300).rows()


def test_a_prompt_has_the_number_of_nodes_and_nine_different_edges_in_order(rows):
    for row in rows:
        nodes, edges = parse(row["prompt"])
        assert nodes == 7
        assert len(edges) == 9
        assert edges == sorted(set(edges))
        assert set(edges) <= set(combinations(range(1, 8), 2))


def test_the_target_colours_the_nodes_so_that_edges_join_different_ones(rows):
    for row in rows:
        colours = row["target"].split(" ")
        assert len(colours) == 7
        assert set(colours) <= set("abc")
        assert all(colours[a - 1] != colours[b - 1] for a, b in parse(row["prompt"])[1])


def test_the_infill_view_is_prompt_and_target_with_the_prompt_given(rows):
    for row in rows:
        assert row["text"] == row["prompt"] + " " + row["target"]
        assert row["fixed"] == "1" * (len(row["prompt"]) + 1) + "0" * len(row["target"])


def test_every_colouring_of_every_graph_comes_up():
    found = set()
    for split in SPLITS:  # of 3 graphs of 3 nodes and 2 edges, each with 2 colourings, a split has an even number
        for n in (6, 4, 2):
            with contextlib.suppress(UserError):
                found |= {row["text"] for row in GraphColouring(split=split, n=n, nodes=3, edges=2, colours=2).rows()}
                break
    graphs = {"1 2 1 3": ("a b b", "b a a"), "1 2 2 3": ("a b a", "b a b"), "1 3 2 3": ("a a b", "b b a")}
    assert found == {f"3 {edges} {colours}" for edges, answers in graphs.items() for colours in answers}


def test_stored_answers_lie_anywhere_among_all_answers():
    rows = GraphColouring(split="train", n=1000).rows()
    ranks = []
    for row in rows:
        answers = sorted(Colourings()(row))
        ranks.append((answers.index(row["target"]) + 0.5) / len(answers))
    assert sum(ranks) / len(ranks) == pytest.approx(0.5, abs=5 * 12**-0.5 / 1000**0.5)


def test_no_graph_is_in_two_splits_even_with_another_seed():
    seen = {}
    for seed, split in enumerate(SPLITS):
        for row in GraphColouring(split=split, n=60, nodes=5, edges=5, seed=seed).rows():
            assert seen.setdefault(row["prompt"], split) == split


def test_graphs_are_asked_for_several_times_in_a_row():
    once, twice = GraphColouring(split="val", n=5).rows(), GraphColouring(split="val", n=5, samples=2).rows()
    assert twice == [row for row in once for _ in range(2)]


def test_fewer_graphs_are_the_beginning_of_more_and_seeds_differ(rows):
    assert GraphColouring(split="train", n=5).rows() == rows[:5]
    assert GraphColouring(split="train", n=5, seed=1).rows() != rows[:5]


def test_a_triangle_has_six_colourings_of_three_colours_and_none_of_two():
    assert len(Colourings(colours=3)({"prompt": "3 1 2 1 3 2 3"})) == 6
    assert not Colourings(colours=2)({"prompt": "3 1 2 1 3 2 3"})


def test_all_answers_are_those_that_the_check_accepts(rows):
    for row in rows[:3]:
        everything = (" ".join(letters) for letters in product("abc", repeat=7))
        assert {answer for answer in everything if ColouringCheck()(row, answer)} == Colourings()(row)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("a b a", True),
        ("3 1 2 2 3 a b a", True),
        ("b c a", True),
        ("a a b", False),
        ("a b", False),
        ("a b a b", False),
        ("a b d", False),
        ("", False),
    ],
)
def test_check_wants_one_known_colour_a_node_and_none_twice_on_an_edge(answer, right):
    assert ColouringCheck()({"prompt": "3 1 2 2 3", "target": "never looked at"}, answer) is right


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"nodes": 1}, "nodes"),
        ({"nodes": 9}, "nodes"),
        ({"edges": 0}, "edges"),
        ({"edges": 17}, "edges"),  # 3 + 2 + 2 nodes: 6 + 6 + 4 edges between different colours
        ({"samples": 0}, "samples"),
    ],
)
def test_impossible_graphs_are_refused_by_key(wrong, key):
    with pytest.raises(UserError, match=rf"source\.{key}"):
        GraphColouring(split="train", **wrong)
