import math

import mpmath
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsim.gaussian_dp import gaussian_epsilon

MU = st.floats(-6, 9).map(lambda exponent: 10.0**exponent)
DELTA = st.floats(-300, -0.0005).map(lambda exponent: 10.0**exponent) | st.floats(1e-3, 0.999)


def exact_delta(epsilon, mu):
    """Return what Balle and Wang 2018, theorem 8, gives, to 80 digits."""
    with mpmath.workdps(80):
        mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
        first, second = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return mpmath.ncdf(first) - mpmath.exp(epsilon) * mpmath.ncdf(second)


@settings(deadline=None)
@given(mu=MU, delta=DELTA)
@example(mu=1e-6, delta=1e-300)
@example(mu=1e9, delta=1e-300)
@example(mu=1e9, delta=0.999)
@example(mu=6.59, delta=0.999)
def test_epsilon_is_the_root_of_the_exact_delta(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    error = 1e-9 * epsilon + 1e-11
    assert exact_delta(epsilon + error, mu) <= delta
    assert epsilon <= error or exact_delta(epsilon - error, mu) >= delta


@settings(deadline=None)
@given(mu=MU, delta=DELTA, growth=st.floats(1e-5, 3))
def test_epsilon_grows_with_mu_and_shrinks_with_delta(mu, delta, growth):
    epsilon = gaussian_epsilon(mu, delta)
    assert gaussian_epsilon(mu * (1 + growth), delta) >= epsilon
    assert gaussian_epsilon(mu, delta * (1 + growth)) <= epsilon if delta * (1 + growth) < 1 else True


def test_zero_at_the_total_variation_distance_and_above_it():
    distance = math.erf(0.7 / math.sqrt(8))
    assert gaussian_epsilon(0.7, distance) == 0
    assert gaussian_epsilon(0.7, distance * 1.01) == 0
    assert 0 < gaussian_epsilon(0.7, distance * 0.99) < 0.02


def test_the_ends_of_the_range_of_floats_are_zero_and_infinity():
    assert gaussian_epsilon(0.0, 1e-5) == 0
    assert gaussian_epsilon(1e-300, 1e-5) == 0
    assert 0 <= gaussian_epsilon(1e-300, 5e-324) < 1e-290
    assert gaussian_epsilon(1e200, 1e-5) == gaussian_epsilon(math.inf, 1e-5) == math.inf


@pytest.mark.parametrize(("mu", "delta"), [(-1.0, 0.1), (math.nan, 0.1), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)])
def test_what_has_no_meaning_is_refused(mu, delta):
    with pytest.raises(ValueError, match="expected"):
        gaussian_epsilon(mu, delta)
