"""The reproduction of the paper's figures runs, and judges what it should."""

import csv
import pathlib

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch):
    root = pathlib.Path(__file__).parents[2]
    monkeypatch.syspath_prepend(root / "examples")


@pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="test_exact_distribution.py trains in this world on every backend",
)
def test_it_writes_pictures_numbers_and_verdicts(tmp_path):
    import paper_figures

    arguments = paper_figures.parse_arguments(
        ["--quick", "--figures", "5", "8", "--seeds", "2"]
        + ["--output", str(tmp_path)]
    )
    verdicts = paper_figures.main(arguments)
    assert [v.outcome for v in verdicts if v.figure == 8] == ["HELD"] * 2
    assert len((tmp_path / "table.md").read_text().splitlines()) == 2 + len(
        verdicts
    )
    for number in (5, 8):
        assert (tmp_path / f"figure_{number}.png").stat().st_size > 5000
    with open(tmp_path / "runs.csv") as stream:
        rows = list(csv.DictReader(stream))
    rewards = {}
    for row in rows:
        run = row["setting"], row["seed"]
        rewards.setdefault(run, []).append(float(row["reward"]))
    assert len(rewards) == 4
    # The start is the same for both settings, and other for another seed.
    starts = {(seed, run[0]) for (_, seed), run in rewards.items()}
    assert len(starts) == 2
    assert all(run[0] != run[-1] for run in rewards.values())


def test_criteria_tell_differences_from_noise():
    """Also the other way round: a claim can fail."""
    import paper_verdicts

    low, high = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.6, 3.4])
    noisy = np.array([3.0, 1.0, 2.1])
    assert paper_verdicts.larger(2, "", high, low).outcome == "HELD"
    assert paper_verdicts.larger(2, "", low, high).outcome == "REVERSED"
    assert paper_verdicts.larger(2, "", noisy, low).outcome == "UNDECIDED"
    gain = np.full(3, 10.0)
    assert paper_verdicts.agree(2, "", high, low, gain).outcome == "HELD"
    assert (
        paper_verdicts.agree(2, "", high, low, gain / 5).outcome == "NOT HELD"
    )


def test_fronts_are_compared_at_equal_kl():
    """One policy pays half the KL for the same reward, at another pace."""
    import paper_verdicts

    steps = np.linspace(0, 1, 11)
    cheap = {"kl_start": steps[None], "reward": steps[None]}
    dear = {"kl_start": 2 * steps[None] ** 2, "reward": steps[None] ** 2}
    half, full = paper_verdicts.reward_at_equal_kl(cheap, dear)
    np.testing.assert_allclose(half, 2 * full, rtol=1e-6)
