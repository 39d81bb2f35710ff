"""Random modules, losses, rows and ways to hand them over, against plain autograd in float64.

Everything in a case follows from its number: `PYTHONPATH=tests python -m adversary 1234` runs one
and says what it is. The campaign's numbers are set by the environment: `ADVERSARY_FIRST` (100,000)
and `ADVERSARY_CASES` (2,000).
"""

import os

import pytest
from adversary.cases import FAMILIES, LOSSES, case
from adversary.outcomes import Summary, outcome
from adversary.packing import OUTPUTS, TARGETS

SHORT = (
    1200, 1, 242, 163, 524, 45, 86, 1807, 368, 369, 1170, 491, 52, 13, 1134, 135, 56, 17, 98, 59,
    100, 21, 62, 23, 24, 25, 26, 27, 1308, 309, 30, 71, 152, 33, 114, 2075, 36, 37, 38, 39, 132,
)  # fmt: skip
FIRST = int(os.environ.get("ADVERSARY_FIRST", "100000"))
CASES = int(os.environ.get("ADVERSARY_CASES", "2000"))
TOGETHER = 50


@pytest.mark.parametrize("seed", SHORT)
def test_numbers_are_right_or_refused(seed):
    found = outcome(seed, most=1)
    assert not found.failures, str(found)


def test_the_short_form_has_every_family():
    cases = [case(seed) for seed in SHORT]
    assert {one.family for one in cases} == set(FAMILIES)
    assert {one.loss_family for one in cases} == set(LOSSES)
    assert {one.output for one in cases} == set(OUTPUTS.values())
    assert {one.target for one in cases} == set(TARGETS.values())


@pytest.fixture(scope="module")
def summary(request):
    """Of all cases of the campaign, told when it ends."""
    total = Summary([])
    yield total
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{total}")


@pytest.mark.campaign
@pytest.mark.parametrize("first", range(FIRST, FIRST + CASES, TOGETHER))
def test_numbers_of_many_cases_are_right_or_refused(first, summary):
    found = [outcome(seed) for seed in range(first, min(first + TOGETHER, FIRST + CASES))]
    for one in found:
        summary.add(one)
    failed = [str(one) for one in found if one.failures]
    assert not failed, "\n".join(failed)
