"""Measures and mutations, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from xlm import sampling
from xlm.testing import oracles
from xlm.testing.oracles import Measured, Mutation, Oracle, OracleCase


def holds(name="it holds", error=0.0):
    return Oracle(name, lambda: Measured(error, 1.0, "units"))


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (1.0, True), (1.1, False), (math.nan, False)])
def test_an_error_passes_up_to_its_tolerance_and_nan_never(error, passed):
    assert Measured(error, 1.0, "").passed is passed


def test_samples_of_a_law_have_it_and_of_another_one_do_not():
    law = torch.tensor([0.5, 0.3, 0.2])
    assert oracles.has_law(torch.tensor([500, 300, 200]), law).passed
    assert not oracles.has_law(torch.tensor([300, 500, 200]), law).passed


def test_a_count_beyond_the_outcomes_is_of_something_impossible():
    law = torch.tensor([0.5, 0.5])
    assert oracles.has_law(torch.tensor([500, 500, 0]), law).passed
    assert oracles.has_law(torch.tensor([500, 499, 1]), law).error == math.inf


def test_a_mass_is_that_of_all_outcomes():
    nll = -torch.tensor([0.5, 0.25]).log()
    assert oracles.has_mass(nll).error == pytest.approx(0.25)
    assert oracles.has_mass(nll, total=0.75, tolerance=1e-6).passed


def test_equal_tensors_differ_by_nothing_infinities_included():
    left = torch.tensor([1.0, math.inf])
    assert oracles.equal(left, left).error == 0
    assert oracles.equal(left, torch.tensor([1.5, math.inf])).error == 0.5
    assert oracles.equal(left, left[:1]).error == math.inf


def test_an_estimate_is_measured_in_standard_errors():
    assert oracles.within_error(1.2, 1.0, 0.1).error == pytest.approx(2.0)
    assert not oracles.within_error(1.4, 1.0, 0.1).passed


def test_only_what_lies_below_counts():
    values, least = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 2.25])
    assert oracles.not_below(values, least).error == pytest.approx(0.25)
    assert oracles.not_below(least + 1, least).error == 0


def test_a_mutation_is_in_the_code_inside_its_block_alone():
    fault = Mutation(
        "nothing is suppressed", {"xlm.sampling.suppress": lambda _: lambda logits, ids: logits}, "it holds"
    )
    logits = torch.zeros(2)
    with fault.applied():
        assert sampling.suppress(logits, torch.tensor([0])).isfinite().all()
    assert not sampling.suppress(logits, torch.tensor([0])).isfinite().all()


def test_a_mutation_of_a_method_keeps_what_kind_of_method_it_is():
    class_method = "xlm.sampling.TokenFilter.__call__"
    fault = Mutation("keeps all", {class_method: lambda _: lambda self, logits: logits}, "it holds")
    greedy = sampling.TokenFilter(temperature=0.0)
    with fault.applied():
        assert torch.equal(greedy(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    assert greedy(torch.tensor([1.0, 2.0])).tolist() == [-math.inf, 2.0]


def test_a_mutation_of_nothing_is_an_error():
    with pytest.raises(AttributeError), Mutation("", {"xlm.sampling.no_such_thing": lambda _: None}, "").applied():
        pass


def test_names_of_a_case_are_unique_and_mutations_name_an_oracle():
    with pytest.raises(ValueError, match="twice in one oracle case: it holds"):
        OracleCase([holds(), holds()])
    with pytest.raises(ValueError, match="there is no oracle 'another'"):
        OracleCase([holds()], [Mutation("a fault", {}, "another")])
