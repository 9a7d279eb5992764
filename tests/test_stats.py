import pytest
from scipy import stats as scipy_stats

from harness.errors import EmptySelection
from harness.stats import Interval, overlap, t_interval, t_quantile


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 29, 30, 999])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99, 0.999])
def test_quantiles_are_those_of_scipy(df: int, confidence: float) -> None:
    assert t_quantile(df, confidence) == pytest.approx(scipy_stats.t.ppf((1 + confidence) / 2, df), rel=1e-9)


def test_interval_is_that_of_scipy() -> None:
    values = [0.31, 0.28, 0.4, 0.35]
    low, high = scipy_stats.t.interval(0.95, 3, loc=scipy_stats.tmean(values), scale=scipy_stats.sem(values))
    assert t_interval(values) == pytest.approx((sum(values) / 4, low, high))


def test_interval_covers_its_share_of_samples_of_three() -> None:
    draws = scipy_stats.norm.rvs(size=(2000, 3), random_state=0)
    found = [t_interval(list(draw)) for draw in draws]
    share = sum(i.low <= 0 <= i.high for i in found if i.low is not None and i.high is not None) / 2000
    assert 0.935 <= share <= 0.965  # three standard errors of 2000 coin flips at 0.95


def test_one_value_has_a_mean_and_no_interval() -> None:
    assert t_interval([0.5]) == (0.5, None, None)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert t_interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1, 0.1))


def test_no_value_is_an_error() -> None:
    with pytest.raises(EmptySelection, match="at least one value"):
        t_interval([])


@pytest.mark.parametrize(
    ("other", "shared"), [((2, 1, 3), True), ((5, 4, 6), False), ((9, 1.9, 17), True), ((5, None, None), True)]
)
def test_overlap(other: tuple, shared: bool) -> None:
    assert overlap(Interval(1, 0, 2), Interval(*other)) is shared
    assert overlap(Interval(*other), Interval(1, 0, 2)) is shared
