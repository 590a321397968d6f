from itertools import combinations, product
from typing import Any

import pytest

from tests.support import pairwise

OPTIONS: list[dict[str, Any]] = [
    {"a": (1, 2), "b": (1, 2)},
    {"a": (False, None, "x"), "b": ([], [1]), "c": ({},), "d": "xyz"},
    dict.fromkeys("abcdefgh", (0, 1)),
    {"a": range(5), "b": range(4), "c": range(3), "d": range(2)},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_pair_of_values_occurs(options: dict[str, Any]) -> None:
    cases = pairwise(**options)
    for one, other in combinations(options, 2):
        found = [[case[one], case[other]] for case in cases]
        for pair in product(options[one], options[other]):
            assert list(pair) in found, (one, other, pair)


def test_the_cases_are_whole_few_and_always_the_same() -> None:
    options = OPTIONS[3]
    cases = pairwise(**options)
    assert all(list(case) == list(options) for case in cases)
    assert 5 * 4 <= len(cases) <= 24  # of 120
    assert len(pairwise(**OPTIONS[2])) <= 10  # of 256
    assert pairwise(**options) == cases
