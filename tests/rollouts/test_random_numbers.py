"""The random numbers: right generator, and a function of their use only."""

import numpy as np
import pytest
from keras import ops

from keras_bond.rollouts import random_numbers


GOLDEN = [[0.184325, 0.646994], [0.197821, 0.429322]]


def signed(word):
    return ops.convert_to_tensor(np.array(word, "uint32").view("int32"))


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        (
            (0x243F6A88, 0x85A308D3),
            (0x13198A2E, 0x03707344),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ],
)
def test_threefry_gives_the_published_vectors(counter, key, expected):
    """Pins wrap-around and logical shifts of int32 on every backend."""
    words = random_numbers.threefry2x32(
        tuple(map(signed, key)), tuple(map(signed, counter))
    )
    words = [np.array(ops.convert_to_numpy(word)) for word in words]
    assert [int(word.view("uint32")) for word in words] == list(expected)


def draw(rows, purpose="policy", seed=3, num_samples=2, num_positions=5):
    rows = ops.convert_to_tensor(np.array(rows, "int32"))
    return ops.convert_to_numpy(
        random_numbers.uniform(seed, purpose, rows, num_samples, num_positions)
    )


def test_numbers_are_the_same_on_every_backend():
    """A change here changes every run that was ever seeded."""
    np.testing.assert_allclose(
        draw([0, 7])[:, 0, :2],
        GOLDEN,
        rtol=0,
        atol=1e-6,
    )


def test_a_row_draws_the_same_in_any_batch():
    """Batch 8 and 4 + 4 must agree; so must more samples and positions."""
    whole = draw(range(8))
    halves = np.concatenate([draw(range(4)), draw(range(4, 8))])
    np.testing.assert_array_equal(whole, halves)
    longer = draw(range(8), num_samples=3, num_positions=9)
    np.testing.assert_array_equal(whole, longer[:, :2, :5])


def test_streams_never_meet():
    """The policy must not draw what the anchor draws, nor evaluation."""
    streams = [
        draw(range(20), purpose).ravel() for purpose in random_numbers.PURPOSES
    ]
    streams.append(draw(range(20), seed=4).ravel())
    numbers = np.concatenate(streams)
    # 1,600 numbers of 24 bits: a chance meeting has probability 7 %.
    assert len(np.unique(numbers)) >= len(numbers) - 2


def test_numbers_are_uniform():
    """Mean and variance of 50,000 numbers, each off with probability 1e-5."""
    numbers = draw(range(500), num_samples=10, num_positions=10)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 4.5 * np.sqrt(1 / 12 / 50_000)
    assert abs(numbers.var() - 1 / 12) < 4.5 * np.sqrt(1 / 180 / 50_000)
