"""Runs in pairs: the interval of their difference is that of a paired t-test."""

import pytest
from scipy import stats

from benchmarks.paired_runs import difference, paired


def test_an_interval_is_that_of_a_paired_t_test() -> None:
    ours, other = [0.81, 0.84, 0.79, 0.86, 0.83], [0.80, 0.80, 0.81, 0.82, 0.80]
    interval = stats.ttest_rel(ours, other).confidence_interval(0.95)
    mean, low, high = paired(ours, other)
    assert (low, high) == pytest.approx((interval.low, interval.high)) and low < mean < high


def test_one_pair_has_no_interval() -> None:
    assert difference([0.5], [0.75]) == "-0.250"
    assert difference([1536.0], [512.0], 0) == "+1024"
