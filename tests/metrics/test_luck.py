from math import sqrt
from statistics import fmean, median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t

from fedsim.metrics.luck import SIGNIFICANCE, BlindSkills, binomial, exceedance, holm


@pytest.mark.parametrize(("hits", "examples", "chance"), [(1.0, 1, 0.5), (4.0, 4, 0.5), (3.0, 10, 0.1), (0.0, 5, 0.3)])
def test_the_binomial_bound_is_that_of_an_exact_one_sided_test(hits, examples, chance):
    expected = binomtest(int(hits), examples, chance, alternative="greater").pvalue
    assert binomial(hits, examples, chance) == pytest.approx(expected)


def test_no_hit_is_always_explained_by_luck_and_a_chance_of_one_explains_all():
    assert binomial(0.0, 7, 0.2) == 1.0
    assert binomial(7.0, 7, 1.0) == 1.0


@settings(max_examples=50)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_no_more_than_separate_tests_and_no_less_than_bonferroni(values):
    kept = holm(values)
    for value, is_kept in zip(values, kept, strict=True):
        assert not is_kept or value <= SIGNIFICANCE
        assert is_kept or value > SIGNIFICANCE / len(values)


def test_holm_is_the_step_down_procedure_of_its_paper():
    assert holm([0.01, 0.04, 0.03, 0.005]) == (True, False, False, True)
    assert holm([]) == ()


def test_blind_attempts_look_leaky_no_more_often_than_the_error_rate_says():
    """Families of 20 rounds of an attack that learns nothing, with the scatter that is assumed of it."""
    generator = np.random.default_rng(0)
    families = generator.normal(0.0, 0.4, (1000, 20))
    seen = generator.normal(0.0, 0.4, (1000, 20))
    looks = [
        any(holm(exceedance(family.tolist(), BlindSkills.of(blind.tolist()), 0.4)))
        for family, blind in zip(families, seen, strict=True)
    ]
    assert fmean(looks) <= SIGNIFICANCE + 0.02


def test_an_exact_copy_stands_out_among_a_hundred_rounds():
    tests = exceedance([0.0] * 99 + [60.0], BlindSkills.of([0.5] * 100), 0.4)
    assert holm(tests) == (False,) * 99 + (True,)


def test_a_skill_of_zero_is_even_odds_and_blind_attempts_below_zero_do_not_widen_the_scatter():
    assert exceedance([0.0], BlindSkills.of([]), 0.4) == pytest.approx([0.5])
    assert exceedance([1.0], BlindSkills.of([-9.0] * 8), 0.4) < exceedance([1.0], BlindSkills.of([2.0] * 8), 0.4)


def test_what_an_attack_finds_in_any_update_is_its_mean_and_no_scatter():
    at_the_mean, beyond = exceedance([2.0, 4.0], BlindSkills.of([2.0] * 8), 0.4)
    assert at_the_mean == pytest.approx(0.5) and beyond < 0.001
    (within_the_scatter,) = exceedance([4.0], BlindSkills.of([0.0, 4.0] * 4), 0.4)
    assert within_the_scatter > 0.05


def test_blind_attempts_with_a_mean_of_their_own_look_leaky_no_more_often_than_the_error_rate_says():
    generator = np.random.default_rng(1)
    families = generator.normal(2.0, 0.4, (1000, 8))
    seen = generator.normal(2.0, 0.4, (1000, 8))
    looks = [
        any(holm(exceedance(family.tolist(), BlindSkills.of(blind.tolist()), 0.4)))
        for family, blind in zip(families, seen, strict=True)
    ]
    assert fmean(looks) <= SIGNIFICANCE + 0.02


def test_with_many_blind_attempts_the_test_becomes_that_of_their_own_scatter():
    blind = norm.ppf((np.arange(20_000) + 0.5) / 20_000, scale=1.5).tolist()
    assert exceedance([3.0], BlindSkills.of(blind), 0.4) == pytest.approx([norm.sf(2.0)], rel=0.05)


@given(
    skills=st.lists(st.floats(-5, 60), max_size=6),
    blind=st.lists(st.floats(-5, 5), max_size=12),
    scale=st.floats(0.1, 2.0),
)
def test_each_probability_is_that_of_the_formula_on_its_own(skills, blind, scale):
    """One skill after the other, from the definition: the median, the upper half of the scatter, Student's distribution."""
    count, center = len(blind), max(0.0, median(blind)) if blind else 0.0
    freedom = 8 + count / 2
    scatter = sqrt((8 * scale**2 + sum((skill - center) ** 2 for skill in blind if skill > center)) / freedom)
    scatter = max(scale, scatter) * (sqrt(1 + 1 / count) if center > 0 else 1.0)
    expected = [1 - t(freedom, loc=center, scale=scatter).cdf(skill) for skill in skills]
    assert exceedance(skills, BlindSkills.of(blind), scale) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(skills=st.lists(st.floats(-5, 5), max_size=12), threshold=st.floats(-5, 5))
def test_blind_skills_count_those_at_a_threshold_or_beyond(skills, threshold):
    assert BlindSkills.of(skills).beyond(threshold) == sum(skill >= threshold for skill in skills)
