"""10,000 hostile cases: each is fine or refused in two lines; none crashes, hangs or is silent."""

import pytest

from tests.hostile.harness import GOOD, run

CASES = {
    "caches": 400,
    "data_files": 800,
    "exports": 1200,
    "recipes": 3000,
    "run_folders": 1500,
    "sets": 1000,
    "sizes": 200,
    "step_folders": 3000,
    "streams": 300,
}
"""Cases of each area, in the slow run."""
SOME = {"mixed": 250, "streams": 4}
"""Those of every run."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("area", "count"),
    [*SOME.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in CASES.items())],
)
def test_every_case_is_fine_or_refused(area: str, count: int) -> None:
    result = run(area, first=0, count=count)

    assert not result.failures, "\n\n".join(result.failures[:5])
    assert sum(result.counts.values()) == count
    assert set(result.counts) <= set(GOOD)
