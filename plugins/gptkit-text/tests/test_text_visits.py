"""The order of remote shards: a pure function that visits each shard once per epoch."""

import numpy as np
import pytest

from gptkit_text.visits import Visits

VISITS = Visits(shards=7, tokens=101, block_size=10, shuffle=True)
DRAWN = 7 * 10
"""Windows of an epoch."""


def shards(visits: Visits, seed: int, step: int, batch_size: int) -> list[int]:
    return (visits.indices(seed, step, batch_size) // visits.span).tolist()


def test_the_very_first_visit_is_to_the_first_shard() -> None:
    for seed in range(20):
        assert set(shards(VISITS, seed, 0, VISITS.windows)) == {0}
    later = {shards(VISITS, seed, 1, DRAWN)[0] for seed in range(20)}
    assert len(later) > 3


def test_an_epoch_visits_each_shard_once_and_draws_each_of_its_windows_once() -> None:
    orders = set()
    for epoch in range(5):
        found = VISITS.indices(3, epoch, DRAWN)
        shard, position = np.divmod(found, VISITS.span)
        assert [len(set(shard[i : i + 10])) for i in range(0, DRAWN, 10)] == [1] * 7
        assert set(shard) == set(range(7))
        for number in range(7):
            starts = np.sort(position[shard == number])
            assert (np.diff(starts) == 10).all()
            assert starts[0] + 10 * 10 < 101
        orders.add(tuple(shard[::10]))
    assert len(orders) == 5


def test_a_batch_does_not_depend_on_the_size_of_the_others() -> None:
    whole = VISITS.indices(1, 0, 96)
    for size in (1, 3, 32):
        parts = [VISITS.indices(1, step, size) for step in range(96 // size)]
        assert np.concatenate(parts).tolist() == whole.tolist()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_next_shard_is_that_of_the_next_visit(count: int, shuffle: bool) -> None:
    visits = Visits(count, tokens=101, block_size=10, shuffle=shuffle)
    for step in range(50):
        for size in (1, 4, 10, 23):
            last = (step + 1) * size - 1
            first_of_next = (last // visits.windows + 1) * visits.windows
            assert visits.next_shard(5, step, size) == shards(visits, 5, first_of_next, 1)[0]


def test_with_replacement_windows_begin_anywhere_in_the_visited_shard() -> None:
    visits = Visits(shards=3, tokens=1000, block_size=10, shuffle=False)
    shard, position = np.divmod(visits.indices(1, 0, 3 * visits.windows), visits.span)
    assert [len(set(part)) for part in np.split(shard, 3)] == [1, 1, 1]
    assert len(set(position % 10)) == 10
    assert (position >= 0).all()
    assert (position < visits.positions).all()


def test_many_large_shards_have_no_list_of_their_windows() -> None:
    visits = Visits(shards=10**5, tokens=10**9, block_size=1024, shuffle=True)
    found = visits.indices(1, 10**7, 512)
    assert (found >= 0).all()
    assert (found < 10**5 * visits.positions).all()
