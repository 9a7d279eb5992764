"""Coverage of the intervals along curves, 5 seeds at the middle value of the knob and 2 at the others, in simulation."""

import curve_coverage
import pytest


@pytest.mark.long
@pytest.mark.parametrize("spread", curve_coverage.SPREADS)
@pytest.mark.parametrize("shape", curve_coverage.SHAPES)
def test_intervals_along_a_curve_cover_93_to_97_percent(shape: str, spread: str) -> None:
    studies = 200
    error = 3 * (0.05 * 0.95 / studies) ** 0.5  # of a share of 95 % in so few studies
    for name, (share, bias, length) in curve_coverage.covered(shape, spread, studies).items():
        assert 0.93 - error <= share <= 1.0, (name, share)
        assert abs(bias) < 0.2 * length, (name, bias, length)


def test_a_few_studies_of_a_method_without_an_effect_have_no_area() -> None:
    share, bias, length = curve_coverage.covered("null", "none", 12)["area"]
    assert share >= 0.7 and abs(bias) < 0.05 and length < 0.2
