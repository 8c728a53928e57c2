"""The real-data check in small: human texts, their reward, two steps.

Skipped where the E2E data are not, see `integration/restaurants.py`.
"""

import csv
import inspect
import pathlib
import sys

import keras
import pytest

import keras_bond

sys.path.append(str(pathlib.Path(__file__).parents[2] / "integration"))

import fact_rules
import restaurant_world
import restaurants
from restaurants import demo

pytestmark = pytest.mark.one_backend

FACTS = {
    "name": "Cotto",
    "eatType": "coffee shop",
    "customer rating": "5 out of 5",
    "familyFriendly": "no",
    "near": "Café Rouge",
}
TINY = (
    "--sft-steps 2 --steps 2 --measure-every 1 --sequences-per-step 8 "
    "--held-out 4 --pool 9 --samples 9 --final-samples 5"
)


@pytest.fixture(scope="module")
def world():
    try:
        return restaurant_world.Restaurants(restaurant_world.find_data())
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def reader():
    return fact_rules.Reader(["Cotto", "The Rice Boat", "Café Rouge"])


@pytest.mark.parametrize(
    "text, reward",
    [
        (
            "Near Cafe Rouge, the coffee shop Cotto has five stars but is not "
            "a place for kids.",
            1.0,
        ),
        ("Cotto is a highly rated coffee shop.", 3 / 5),
        # A contradiction instead of the fact; the fact and a contradiction.
        ("Cotto is a pub.", 0.0),
        ("Cotto is a pub and a coffee shop.", 0.0),
        # "not family-friendly" is not "family-friendly", a landmark no rating.
        ("Cotto is family-friendly.", 0.0),
        ("Cotto, near The Rice Boat.", 0.0),
        ("Cotto serves Italian food.", 0.0),
        ("", 0.0),
    ],
)
def test_facts_earn_and_inventions_cost(reader, text, reward):
    assert reader.score(FACTS, text) == pytest.approx(reward)


def test_held_out_facts_are_never_taught(world):
    taught = {
        frozenset(restaurant_world.parse_prompt(row["prompt"]).items())
        for row in world.train
    }
    for prompt in world.held_out_prompts(500, seed=0):
        facts = restaurant_world.parse_prompt(prompt)
        assert prompt == prompt.strip() and "name" in facts
        assert frozenset(facts.items()) not in taught


def test_each_list_of_facts_comes_once_before_any_comes_again(world):
    count = len(world.train)
    examples = world.make_examples(2 * count, seed=0)
    assert len(set(examples["prompts"][:count])) == count
    assert set(examples["prompts"][:count]) == set(examples["prompts"][count:])
    assert examples == world.make_examples(2 * count, seed=0)


def test_the_reward_knows_human_texts_from_shuffled_ones(world):
    own, shuffled = world.human_rewards()
    assert 0.88 < own < 0.93
    assert shuffled < -0.2


def test_missing_data_say_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BOND_DATA", str(tmp_path))
    rule = "E2E data not found: set KERAS_BOND_DATA to a folder that holds e2e/"
    with pytest.raises(FileNotFoundError, match=rule):
        restaurant_world.find_data()
    with pytest.raises(SystemExit, match=rule):
        restaurants.main(["--backend", keras.config.backend()])


def test_trainers_are_compared_at_equal_numbers_of_sequences():
    defaults = inspect.signature(keras_bond.Bond).parameters
    trainer = demo.TRAINERS["bond"]
    assert trainer.policy_samples == defaults["num_policy_samples"].default
    assert trainer.anchor_samples == defaults["num_anchor_samples"].default
    # The KL is measured by the same number of samples, too.
    for trainer in demo.TRAINERS.values():
        assert restaurants.KL_SAMPLES % trainer.policy_samples == 0


def test_two_steps_from_facts_to_table(world, tmp_path, capsys):
    options = ["--backend", keras.config.backend(), *TINY.split()]
    *start, after = restaurants.main([*options, "--runs", str(tmp_path)])
    assert [row["n"] for row in start] == list(range(1, 9))
    assert start[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert after["sequences"] == 12

    output = tmp_path / "jbond-seed0"
    with open(output / "path.csv") as file:
        path = list(csv.DictReader(file))
    assert [int(row["sequences"]) for row in path] == [0, 6, 12]
    assert float(path[0]["kl"]) == pytest.approx(0.0, abs=1e-5)
    assert float(path[2]["kl"]) == pytest.approx(after["kl"], abs=0.01)
    assert after["reward_error"] > 0 and start[1]["reward_error"] > 0
    assert (output / "table.md").read_text() in capsys.readouterr().out
    assert (output / "reward_kl.png").exists()
