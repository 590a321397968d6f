import math
import struct
from typing import Any

import numpy as np
import pytest

from gptkit.errors import UsageError
from gptkit.sampling.rule import Floats, SamplingOptions, choose, uniforms
from tests.support import pairwise

LARGEST_BELOW_ONE = np.float32(1 - 2**-24)
HIGHEST, LOWEST = 1252319804544721972, 7046029254386353131
"""Seeds whose first number has the top 24 bits all set and all clear."""


def splitmix64(seed: int, n: int) -> int:
    """Number n of a seed's stream, in Python's own integers."""
    mask = 2**64 - 1
    z = (seed + (n + 1) * 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def row(*values: float) -> Floats:
    return np.array([values], dtype=np.float32)


def pick(logits: Floats, u: float, **options: Any) -> int:
    chosen = choose(logits, np.array([u], dtype=np.float32), SamplingOptions(**options))
    assert (chosen.dtype, chosen.shape) == (np.int64, (1,))
    return int(chosen[0])


def frequencies(logits: Floats, draws: int = 20_000, **options: Any) -> Floats:
    sampling = SamplingOptions(seed=99, **options)
    chosen = choose(np.repeat(logits, draws, axis=0), uniforms(99, 0, draws), sampling)
    return np.bincount(chosen, minlength=logits.shape[1]) / np.float32(draws)


def slow_choice(
    logits: list[float], u: float, *, temperature: float, top_k: int, top_p: float
) -> int:
    """The sampling rule at a temperature above 0, sentence by sentence, in plain Python."""
    scaled = [logit / temperature for logit in logits]
    ids = list(range(len(logits)))
    k = min(top_k or len(ids), len(ids))
    if k < len(ids) or top_p < 1:
        ids = sorted(ids, key=lambda i: (-scaled[i], i))[:k]
    largest = max(scaled)
    e = [math.exp(scaled[i] - largest) for i in ids]
    p = [value / sum(e) for value in e]
    if top_p < 1:
        p = [value for n, value in enumerate(p) if n == 0 or sum(p[:n]) < top_p]
    target = u * sum(p)
    for n in range(len(p)):
        if sum(p[: n + 1]) > target:
            return ids[n]
    return ids[len(p) - 1]


def test_splitmix64_is_the_published_one() -> None:
    # The first numbers of seed 1234567 in Vigna's reference implementation.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [splitmix64(1234567, n) for n in range(5)] == published


@pytest.mark.parametrize(
    ("seed", "batch_size"), [(0, 1), (1, 3), (1337, 1), (2**31, 3), (2**63 - 1, 3)]
)
def test_uniforms_follow_the_rule(seed: int, batch_size: int) -> None:
    for draw in (0, 1, 2, 1000, 10**9):
        expected = [
            float32(float32((splitmix64(seed, draw * batch_size + b) >> 40) + 0.5) * 2**-24)
            for b in range(batch_size)
        ]
        u = uniforms(seed, draw, batch_size)
        assert u.dtype == np.float32
        assert u.tolist() == expected


@pytest.mark.parametrize("seed", [HIGHEST, LOWEST])
def test_the_extreme_uniforms_are_inside_the_unit_interval(seed: int) -> None:
    assert splitmix64(seed, 0) >> 40 == (2**24 - 1 if seed == HIGHEST else 0)
    u = uniforms(seed, 0, 1)[0]
    assert 0 < u <= 1  # float32 rounds the largest to 1: choose() clips it to the last token


def test_uniforms_are_uniform_and_rows_differ() -> None:
    u = np.stack([uniforms(5, draw, 50) for draw in range(400)])
    assert len(np.unique(u)) > 19_900
    counts, _ = np.histogram(u, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # 19 degrees of freedom
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.15
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.15


@pytest.mark.parametrize("temperature", [0.0, -0.0])
def test_greedy_takes_the_likeliest_whatever_the_number(temperature: float) -> None:
    for u in (1e-6, 0.5, float(LARGEST_BELOW_ONE)):
        assert pick(row(1, 3, 2), u, temperature=temperature) == 1
        assert pick(row(1, 3, 2), u, temperature=temperature, top_k=2, top_p=0.5) == 1


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}])
def test_of_equal_tokens_the_smaller_id_is_likeliest(options: dict[str, Any]) -> None:
    for u in (1e-6, 0.5, float(LARGEST_BELOW_ONE)):
        assert pick(row(1, 2, 2, 0, 2), u, **options) == 1


def test_top_k_keeps_the_smaller_ids_of_equal_tokens() -> None:
    kept = frequencies(row(0, 5, 5, 5, 5), top_k=2)
    assert kept[[1, 2]].sum() == 1
    assert kept[1] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-50])
def test_the_lower_the_temperature_the_closer_to_greedy(temperature: float) -> None:
    for options in ({}, {"top_k": 2}, {"top_p": 0.9}):
        assert pick(row(-1, -3, 4, 3.5), 0.9, temperature=temperature, **options) == 2


def test_a_high_temperature_makes_all_alike() -> None:
    np.testing.assert_allclose(frequencies(row(0, 3, 9, 1), temperature=1e6), 0.25, atol=0.02)


@pytest.mark.parametrize("options", [{"top_p": 1.0}, {"top_p": 0.999999}, {"top_k": 7}])
def test_a_rule_that_keeps_all_keeps_the_distribution(options: dict[str, Any]) -> None:
    logits = row(0.3, -1, 2, 0, 1.5)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    chi_square = (20_000 * (frequencies(logits, **options) - p) ** 2 / p).sum()
    assert chi_square < 20  # 4 degrees of freedom


def test_temperature_top_k_and_top_p_together() -> None:
    logits = row(1, 2, 3, 4)  # at temperature 1/2: 0.2%, 1.6%, 11.7%, 86.5%
    found = frequencies(logits, temperature=0.5, top_k=3, top_p=0.9)
    p = np.array([0, 0, math.exp(-2), 1]) / (1 + math.exp(-2))
    np.testing.assert_allclose(found, p, atol=0.01)
    assert not found[:2].any()


@pytest.mark.parametrize("top_k", [3, 4, 2**40])
def test_top_k_may_exceed_the_vocabulary(top_k: int) -> None:
    for u in np.linspace(0.001, 0.999, 50):
        assert pick(row(0, 1, 2), u, top_k=top_k) == pick(row(0, 1, 2), u)


@pytest.mark.parametrize("top_p", [1e-50, 1e-6, 0.1])
def test_top_p_always_keeps_the_first(top_p: float) -> None:
    for u in (1e-6, 0.5, float(LARGEST_BELOW_ONE)):
        assert pick(row(0, 1, 2, 1), u, top_p=top_p) == 2


def test_top_p_keeps_the_token_that_crosses_it() -> None:
    logits = np.log(row(0.5, 0.3, 0.15, 0.05))
    assert frequencies(logits, top_p=0.4)[0] == 1
    np.testing.assert_allclose(frequencies(logits, top_p=0.6), [0.625, 0.375, 0, 0], atol=0.02)
    np.testing.assert_allclose(
        frequencies(logits, top_p=0.81), np.array([50, 30, 15, 0]) / 95, atol=0.02
    )


def test_top_p_keeps_no_token_after_the_one_that_reaches_it() -> None:
    assert not frequencies(row(0, 0, 0, 0), top_p=0.5)[2:].any()


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_k": 2}, {"top_p": 0.999}])
def test_an_impossible_token_is_never_drawn(options: dict[str, Any]) -> None:
    logits = row(-np.inf, 0, 0.5, -np.inf)
    lowest, below_1 = uniforms(LOWEST, 0, 1)[0], np.nextafter(np.float32(1), np.float32(0))
    assert {pick(logits, u, **options) for u in (lowest, 0.5, below_1)} <= {1, 2}


@pytest.mark.parametrize(
    "options", pairwise(temperature=(0.3, 1.0, 2.0), top_k=(0, 1, 5, 40), top_p=(1.0, 0.9, 0.3))
)
def test_choices_equal_the_slow_rules(options: dict[str, Any]) -> None:
    generator = np.random.default_rng(17)
    logits = generator.normal(scale=2, size=(40, 20)).astype(np.float32)
    logits[::2] = logits[::2].round()  # many ties
    u = generator.random(40, dtype=np.float32)
    assert choose(logits, u, SamplingOptions(**options)).tolist() == [
        slow_choice(logits[b].tolist(), float(u[b]), **options) for b in range(40)
    ]


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.0}])
def test_rows_do_not_depend_on_each_other(options: dict[str, Any]) -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(8, 30)).astype(np.float32)
    u = generator.random(8, dtype=np.float32)
    before = logits.copy()
    together = choose(logits, u, SamplingOptions(**options))
    alone = [pick(logits[b : b + 1], u[b], **options) for b in range(8)]
    assert together.tolist() == alone
    assert np.array_equal(logits, before)  # the caller's logits stay as they are


def test_a_vocabulary_of_one() -> None:
    for options in ({}, {"top_k": 1}, {"top_p": 0.5}, {"temperature": 0.0}):
        assert pick(row(-3), 0.7, **options) == 0


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"top_k": -1}, "top_k should be 0 .* got -1"),
        ({"top_p": 0.0}, "top_p should be above 0 and at most 1, got 0.0"),
        ({"top_p": -0.5}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": -1.0}, "temperature should be 0 .* or more, .* got -1.0"),
        ({"seed": -1}, "seed should be 0 to .* got -1"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        SamplingOptions(**options)


def test_the_ends_of_every_range_are_taken() -> None:
    SamplingOptions(temperature=0, top_k=0, top_p=1, seed=0)
    SamplingOptions(temperature=1e9, top_k=10**9, top_p=1e-9, seed=2**63 - 1)
