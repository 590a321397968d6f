import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from gptkit_text.order import Order, drawn, interleave, shuffled, whole

WEIGHTS = [(1,), (1, 1), (2, 1), (1, 2), (5, 3, 1), (1, 10**6), (7, 11, 13, 17), (2**30, 1, 2**29)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097])
def test_a_permutation_takes_each_number_once(size: int) -> None:
    for key in range(3):
        found = shuffled(np.arange(size), size, key)
        assert sorted(found.tolist()) == list(range(size))


def test_another_key_gives_another_permutation() -> None:
    found = {tuple(shuffled(np.arange(100), 100, key).tolist()) for key in range(50)}
    assert len(found) == 50


def test_every_permutation_of_a_few_occurs_about_equally_often() -> None:
    keys = 12_000
    numbers, by_key = np.tile(np.arange(4), keys), np.repeat(np.arange(keys), 4)
    found = shuffled(numbers, 4, by_key.astype(np.uint64)).reshape(keys, 4)
    counts = Counter(map(tuple, found.tolist()))
    assert set(counts) == set(permutations(range(4)))
    assert max(counts.values()) < 1.25 * keys / 24 and min(counts.values()) > 0.75 * keys / 24


def test_neighbours_are_spread_evenly() -> None:
    size = 100_003
    found = shuffled(np.arange(50_000), size, 7)
    counts, _ = np.histogram(found, bins=10, range=(0, size))
    assert counts.min() > 4700 and counts.max() < 5300
    steps = np.diff(found)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert len(np.unique(steps)) > 0.7 * len(steps)


def test_sizes_and_keys_may_differ_from_number_to_number() -> None:
    sizes, keys = np.array([5, 1000, 1, 77]), np.array([1, 2, 3, 4], np.uint64)
    numbers = np.array([4, 999, 0, 5])
    alone = [
        int(shuffled(n[None], int(size), int(key))[0])
        for n, size, key in zip(numbers, sizes, keys, strict=True)
    ]
    assert shuffled(numbers, sizes, keys).tolist() == alone


def test_memory_does_not_grow_with_the_size() -> None:
    for size in (10**12, 2**62):
        tracemalloc.start()
        try:
            found = shuffled(np.arange(1000), size, 3)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(set(found.tolist())) == 1000
        assert found.min() >= 0 and found.max() < size
        assert peak < 1 << 20


@pytest.mark.parametrize("weights", WEIGHTS)
def test_counts_are_exact_and_known_without_counting(weights: tuple[int, ...]) -> None:
    source, number = interleave(np.arange(3000), weights)
    for draws in (0, 1, 2, 3, 10, 999, 3000):
        counts = np.bincount(source[:draws], minlength=len(weights)).tolist()
        assert drawn(draws, weights) == counts
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - draws * weight / sum(weights)) < len(weights)
    for i in range(len(weights)):
        mine = number[source == i]
        assert mine.tolist() == list(range(len(mine)))


def test_a_turn_of_the_weights_is_exactly_in_proportion() -> None:
    for weights in WEIGHTS:
        assert drawn(5 * sum(weights), weights) == [5 * weight for weight in weights]


@pytest.mark.parametrize("first", [10**12, 2**61])
def test_late_draws_are_as_exact(first: int) -> None:
    weights = (2**30, 3, 2**29)
    source, number = interleave(np.arange(first, first + 2000), weights)
    before = drawn(first, weights)
    for i in range(3):
        mine = number[source == i].tolist()
        assert mine == list(range(before[i], before[i] + len(mine)))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([2.0, 1.0], (2, 1)),
        ([0.7, 0.3], (7, 3)),
        ([1.0], (1,)),
        ([0.1, 0.25], (2, 5)),
        ([1e-3, 1e3], (1, 10**6)),
    ],
)
def test_weights_become_whole_numbers(weights: list[float], expected: tuple[int, ...]) -> None:
    assert whole(weights) == expected


def test_odd_weights_keep_their_proportion_nearly() -> None:
    for weights in ([1 / 3, 2 / 3], [1e-30, 1.0], [3.14159265358979, 2.71828182845905, 1e9]):
        found = whole(weights)
        assert sum(found) < 2**31 and min(found) >= 1
        largest = max(range(len(weights)), key=weights.__getitem__)
        for i, weight in enumerate(weights):
            ratio = weight / weights[largest]
            assert found[i] / found[largest] == pytest.approx(ratio, abs=1e-8)


def test_an_epoch_has_each_window_once_and_the_next_another_order() -> None:
    order = Order(tokens=(10 * 100 + 4,), weights=(1,), block_size=10, shuffle=True)
    epochs = [
        np.concatenate([order.starts(1, step, 20) for step in range(5 * epoch, 5 * epoch + 5)])
        for epoch in range(3)
    ]
    for starts in epochs:
        assert len(np.unique(starts)) == 100
        assert np.unique(np.diff(np.sort(starts))).tolist() == [10]
        assert starts.min() >= 0 and starts.max() + 10 < 1004
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(order.starts(1, 0, 20), order.starts(2, 0, 20))


def test_an_epoch_is_as_long_as_the_core_counts_it() -> None:
    for tokens in range(9, 60):
        windows = -(-(tokens - 8) // 8)  # as `train.epochs` counts the windows of a split
        order = Order(tokens=(tokens,), weights=(1,), block_size=8, shuffle=True)
        assert len(np.unique(order.starts(1, 0, windows))) == windows


def test_what_is_left_over_at_the_end_is_read_in_other_epochs() -> None:
    order = Order(tokens=(1 + 3 * 8 + 7,), weights=(1,), block_size=8, shuffle=True)
    ends = {int(order.starts(1, epoch, 3).max()) + 8 for epoch in range(60)}
    assert ends == set(range(24, 32))


def test_batches_may_be_larger_than_a_source() -> None:
    order = Order(tokens=(25, 33), weights=(1, 3), block_size=8, shuffle=True)
    starts = order.starts(1, 0, 48)
    assert Counter(starts[starts < 25].tolist()).most_common()[-1][1] == 4  # 12 draws of 3 windows
    assert all(count == 9 for count in Counter(starts[starts >= 25].tolist()).values())


@pytest.mark.parametrize("shuffle", [False, True])
def test_draws_stay_in_their_sources(shuffle: bool) -> None:
    order = Order(tokens=(50, 9, 70), weights=(3, 1, 2), block_size=8, shuffle=shuffle)
    starts = np.concatenate([order.starts(5, step, 6) for step in range(400)])
    allowed = [range(42), range(50, 51), range(59, 121)]
    counts = [sum(int(start) in places for start in starts) for places in allowed]
    assert counts == [1200, 400, 800]


def test_draws_with_replacement_reach_every_position() -> None:
    order = Order(tokens=(20,), weights=(1,), block_size=4, shuffle=False)
    starts = np.concatenate([order.starts(5, step, 50) for step in range(20)])
    assert set(starts.tolist()) == set(range(16))
