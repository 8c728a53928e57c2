"""Preferences at small scale, on transcripts that the test writes."""

import gzip
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "integration"))

import preferences

TALK = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 1 + 1?\n\nAssistant: "


def test_a_transcript_becomes_turns_and_two_answers():
    pair = preferences.to_pair(chosen=TALK + "2", rejected=TALK + "3")
    roles = [turn["role"] for turn in pair["prompt"]]
    assert roles == ["user", "assistant", "user"]
    assert pair["prompt"][-1]["content"] == "1 + 1?"
    assert pair["chosen"] == [{"role": "assistant", "content": "2"}]
    assert pair["rejected"][0]["content"] == "3"


@pytest.mark.parametrize("rejected", ["\n\nHuman: Ho\n\nAssistant: 2", TALK])
def test_answers_to_different_prompts_and_empty_ones_are_left_out(rejected):
    assert preferences.to_pair(chosen=TALK + "2", rejected=rejected) is None


def test_quantiles_count_ties_one_half():
    found = preferences.quantiles_in(
        np.array([[2.0, 9.0]]), np.array([[1.0, 2.0, 3.0, 2.0]])
    )
    np.testing.assert_allclose(found, [[0.5, 1.0]])


def test_best_of_n_is_judged_by_its_samples():
    """The best of two of three: the second once, the third twice in three."""
    weights = preferences.best_of_n_weights(np.array([[1.0, 2.0, 3.0]]), 2)
    np.testing.assert_allclose(weights, [[0.0, 1 / 3, 2 / 3]], rtol=1e-6)


def test_missing_data_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="KERAS_BOND_DATA"):
        preferences.find_data(tmp_path)


def write_transcripts(folder):
    """24 pairs that are short enough, and 6 that are not."""
    file = folder / preferences.FILE
    file.parent.mkdir(parents=True)
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        for i in range(30):
            prompt = f"\n\nHuman: What is {i}?\n\nAssistant: "
            answer = "yes " * (3 if i < 24 else 60)
            pair = {"chosen": prompt + answer, "rejected": prompt + "no"}
            lines.write(json.dumps(pair) + "\n")


@pytest.mark.one_backend
def test_a_quick_run_trains_two_judges_and_a_policy(tmp_path, capsys):
    write_transcripts(tmp_path)
    output = tmp_path / "run"
    accuracies, rows = preferences.main(
        ["--quick", "--backend", "torch", "--data", str(tmp_path)]
        + ["--output", str(output)]
    )
    assert set(accuracies) == {"reward model", "judge"}
    assert rows[-1]["name"] == "after" and rows[-1]["kl"][0] > 0.0
    np.testing.assert_allclose(rows[0]["judge_win_rate"][0], 0.5, atol=1e-6)
    assert "24 of 30 pairs have at most" in capsys.readouterr().out
    assert "judge's win rate" in (output / "table.md").read_text("utf-8")
