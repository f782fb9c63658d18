from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from xlm.errors import UserError
from xlm.tasks.splits import SPLITS
from xlm.tasks.star import Star, StarCheck


def parse(row: dict[str, str]) -> tuple[list[tuple[str, str]], str, str]:
    """Edges, source and goal of a prompt."""
    words = row["prompt"].split(" ")
    return [(words[i], words[i + 1]) for i in range(0, len(words) - 2, 2)], words[-2], words[-1]


@pytest.fixture(scope="module")
def rows():
    return Star(split="train", n=300).rows()


def test_an_easy_graph_has_12_edges_between_13_of_20_labels(rows):
    for row in rows:
        edges, _, _ = parse(row)
        nodes = {node for edge in edges for node in edge}
        assert len(edges) == 12
        assert len(nodes) == 13
        assert nodes <= {str(label) for label in range(20)}


def test_every_graph_is_three_arms_of_four_nodes_out_of_the_source(rows):
    for row in rows:
        edges, source, _ = parse(row)
        following = dict(edges)
        arms = [end for start, end in edges if start == source]
        assert len(arms) == 3
        for node in arms:
            arm = [node]
            while arm[-1] in following:
                arm.append(following[arm[-1]])
            assert len(arm) == 4
            assert source not in arm


def test_the_goal_is_the_end_of_an_arm(rows):
    for row in rows:
        edges, _, goal = parse(row)
        assert goal in {end for _, end in edges}
        assert goal not in {start for start, _ in edges}


def test_the_target_is_the_only_path_to_the_goal_edge_by_edge(rows):
    for row in rows:
        edges, source, goal = parse(row)
        before = {end: start for start, end in edges}
        path = [goal]
        while path[-1] != source:
            path.append(before[path[-1]])
        path.reverse()
        assert len(path) == 5
        assert row["target"].split(" ") == [node for pair in pairwise(path) for node in pair]


def test_edges_come_in_random_order(rows):
    first_places = [parse(row)[0].index(tuple(row["target"].split(" ")[:2])) for row in rows]
    assert set(first_places) == set(range(12))
    assert sum(first_places) / len(rows) == pytest.approx(5.5, abs=4 * 3.45 / 300**0.5)  # 4 standard errors


def test_every_label_is_as_likely_to_be_the_source(rows):
    sources = [parse(row)[1] for row in Star(split="train", n=20_000).rows()]
    counts = [sources.count(str(label)) for label in range(20)]
    assert min(counts) > 1000 - 5 * 31  # 5 standard deviations of a binomial(20000, 1/20)
    assert max(counts) < 1000 + 5 * 31


def test_the_infill_view_is_prompt_and_target_with_the_prompt_given(rows):
    for row in rows:
        assert row["text"] == row["prompt"] + " " + row["target"]
        assert len(row["fixed"]) == len(row["text"])
        assert row["text"][row["fixed"].index("0") :] == row["target"]
        assert row["fixed"] == "1" * (len(row["prompt"]) + 1) + "0" * len(row["target"])


def test_other_shapes_follow_their_parameters():
    row = Star(split="test", n=1, degree=5, path_length=3, n_labels=11).rows()[0]
    edges, source, _ = parse(row)
    assert len(edges) == 10
    assert sum(start == source for start, _ in edges) == 5
    assert len(row["target"].split()) == 4


def test_no_graph_is_in_two_splits_even_with_its_edges_in_another_order():
    small = {"degree": 2, "path_length": 2, "n_labels": 4}  # 24 graphs with a goal, each in two edge orders
    seen = {}
    for split, n in zip(SPLITS, (30, 2, 2), strict=True):
        for row in Star(split=split, n=n, seed=3, **small).rows():
            edges, _, goal = parse(row)
            assert seen.setdefault((frozenset(edges), goal), split) == split


def test_graphs_of_a_split_are_all_different(rows):
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_fewer_graphs_are_the_beginning_of_more(rows):
    assert Star(split="train", n=5).rows() == rows[:5]


def test_seeds_give_different_graphs(rows):
    assert Star(split="train", n=5, seed=1).rows() != rows[:5]


def test_rows_do_not_depend_on_the_process_or_its_hash_seed():
    program = "from xlm.tasks.star import Star; print(Star(split='val', n=20).rows())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{Star(split='val', n=20).rows()}\n"}


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"n_labels": 12}, "n_labels"),
        ({"degree": 1}, "degree"),
        ({"path_length": 1}, "path_length"),
        ({"path_length": [4, 3]}, "path_length"),
        ({"path_length": [3, 4, 5]}, "path_length"),
        ({"path_length": [3, 5], "plan": 3}, "plan"),
        ({"plan": 0}, "plan"),
        ({"path_length": [3, 8]}, "n_labels"),  # 22 nodes of 20 labels
    ],
)
def test_impossible_graphs_are_refused_by_key(wrong, key):
    with pytest.raises(UserError, match=rf"source\.{key}"):
        Star(split="train", **wrong)


MEDIUM = {"path_length": [3, 6], "plan": 2}
HARD = {"degree": 5, "path_length": [6, 12], "plan": 5, "n_labels": 56}


def paths_of(row: dict[str, str]) -> tuple[str, list[int], list[int]]:
    """The hub, and the lengths in edges of the ways into it and out of it; a graph of another form fails."""
    edges, _, _ = parse(row)
    starts, ends = [a for a, _ in edges], [b for _, b in edges]
    (hub,) = {node for node in starts if starts.count(node) > 1}

    def walk(node: str, steps: dict[str, str]) -> int:
        return 0 if node not in steps else 1 + walk(steps[node], steps)

    assert max(ends.count(node) for node in ends if node != hub) == 1
    before = {b: a for a, b in edges if b != hub}
    after = {a: b for a, b in edges if a != hub}
    ins = [1 + walk(a, before) for a, b in edges if b == hub]
    return hub, ins, [1 + walk(b, after) for a, b in edges if a == hub]


@pytest.fixture(scope="module", params=[MEDIUM, HARD], ids=["medium", "hard"])
def asymmetric(request):
    options = {"degree": 3, "n_labels": 20, **request.param}
    return options, Star(split="train", n=400, **options).rows()


def test_paths_share_the_hub_alone_and_plan_steps_follow_it_on_each(asymmetric):
    options, rows = asymmetric
    fewest, most = options["path_length"]
    for row in rows:
        _, ins, outs = paths_of(row)
        assert len(outs) == options["degree"] >= len(ins)
        assert min(outs) >= options["plan"]
        assert sum(ins) + sum(outs) == len(parse(row)[0])
        assert max(outs) < most
        assert options["degree"] * (fewest - 1) <= sum(ins) + sum(outs) <= options["degree"] * (most - 1)


def test_the_target_leads_through_the_hub_from_the_beginning_to_the_end_of_a_path(asymmetric):
    options, rows = asymmetric
    fewest, most = options["path_length"]
    places = set()
    for row in rows:
        hub, _, _ = paths_of(row)
        edges, source, goal = parse(row)
        path = row["target"].split(" ")
        assert StarCheck()(row, row["target"])
        assert source == hub or source not in {b for _, b in edges}
        assert goal not in {a for a, _ in edges}
        assert fewest - 1 <= len(path) // 2 < most
        places.add((len(path) // 2, [source, *path[1::2]].index(hub)))
    assert places == {(n - 1, i) for n in range(fewest, most + 1) for i in range(n - options["plan"])}


def test_the_longest_hard_row_has_112_prompt_and_22_target_tokens():
    rows = Star(split="val", n=1, degree=5, path_length=12, plan=5, n_labels=56).rows()
    assert (len(rows[0]["prompt"].split()), len(rows[0]["target"].split())) == (112, 22)


def test_no_asymmetric_question_is_in_two_splits_however_its_paths_are_paired():
    small = {"degree": 2, "path_length": [2, 3], "plan": 1, "n_labels": 5}
    seen = {}
    for seed, (split, n) in enumerate(zip(SPLITS, (300, 30, 30), strict=True)):
        for row in Star(split=split, n=n, seed=seed, **small).rows():
            edges, source, goal = parse(row)
            assert seen.setdefault((frozenset(edges), source, goal), split) == split


def test_rows_of_the_easy_graphs_are_those_of_earlier_versions(rows):
    digest = hashlib.blake2b(json.dumps(rows[:200]).encode(), digest_size=8).hexdigest()
    assert digest == "470282298485658a"  # data sets are named by their options: the same name, the same rows


def test_check_accepts_every_target_with_or_without_the_prompt(rows):
    check = StarCheck()
    assert all(check(row, row["target"]) and check(row, row["text"]) for row in rows)


PROMPT = "1 2 2 3 1 4 4 5 1 5"  # arms 1-2-3 and 1-4-5, from 1 to 5


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("empty", ""),
        ("the other arm", "1 2 2 3"),
        ("stops before the goal", "1 4"),
        ("starts after the source", "4 5"),
        ("an edge that does not exist", "1 5"),
        ("an edge backwards", "1 4 4 5 5 4 4 5"),
        ("edges that do not join", "1 2 4 5"),
        ("half an edge", "1 4 4 5 5"),
        ("edges in the wrong order", "4 5 1 4"),
        ("no label", "1 4 4 x"),
        ("only the prompt", PROMPT),
    ],
)
def test_check_rejects_an_answer_with_a_fault(fault, answer):
    assert StarCheck()({"prompt": PROMPT, "target": "1 4 4 5"}, "1 4 4 5")
    assert not StarCheck()({"prompt": PROMPT, "target": "1 4 4 5"}, answer), fault


def test_check_accepts_any_path_where_there_are_two():
    prompt = {"prompt": "1 2 2 4 1 3 3 4 1 4", "target": "1 2 2 4"}
    assert StarCheck()(prompt, "1 3 3 4")
