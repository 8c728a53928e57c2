"""Which estimators `Bond` accepts together, and what it says to the others."""

import dataclasses

import pytest

from keras_bond import formulas
from keras_bond.training.estimators import Estimators

DEFAULTS = dict(
    best_of_n=2,
    num_policy_samples=4,
    num_anchor_samples=4,
    forward="auto",
    backward="auto",
    quantiles="harmonic",
    ties="midrank",
    baseline="mixed",
    kl_estimator="centred_log_ratio",
)


def choose(**changes):
    return Estimators(**{**DEFAULTS, **changes}).resolved()


def test_the_defaults_pool_all_samples():
    choice = choose()
    assert (choice.forward, choice.backward) == ("pooled", "pooled")
    assert not choice.needs_other_prompts


@pytest.mark.parametrize(
    "changes",
    [
        {"quantiles": "monte_carlo"},
        {"ties": "random"},
        {"baseline": "batch"},
        {"quantiles": "learned"},
    ],
)
def test_auto_avoids_what_does_not_go_together(changes):
    assert choose(**changes).backward == "policy_samples"
    assert choose(**changes).forward == "pooled"
    larger = choose(best_of_n=4, **changes)
    assert larger.forward == "control_variate"
    assert larger.backward == "policy_samples"


def test_a_resolved_choice_is_accepted_again():
    """A saved model is built from its resolved choice."""
    choice = choose(best_of_n=4)
    assert Estimators(**dataclasses.asdict(choice)) == choice


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"best_of_n": 1}, "`best_of_n` must be an integer of at least 2"),
        ({"best_of_n": 2.5}, "`best_of_n` must be an integer"),
        ({"num_policy_samples": 0}, "`num_policy_samples` must be"),
        ({"num_anchor_samples": 0}, "`num_anchor_samples` must be"),
        ({"forward": "best"}, "`forward` must be one of"),
        ({"backward": "all"}, "`backward` must be one of"),
        ({"quantiles": "exact"}, "`quantiles` must be one of"),
        ({"ties": "lenient"}, "`ties` must be one of"),
        ({"baseline": "none"}, "`baseline` must be one of"),
        ({"kl_estimator": "k3"}, "`kl_estimator` must be one of"),
        ({"best_of_n": 8}, "`best_of_n` must not exceed `num_anchor"),
        (
            {"best_of_n": 8, "forward": "best_sample"},
            "`best_of_n` must not exceed `num_anchor_samples`",
        ),
        ({"forward": "density_ratio"}, "needs a quantile model"),
        ({"best_of_n": 3, "forward": "pooled"}, "holds for `best_of_n=2`"),
        (
            {"best_of_n": 3, "backward": "pooled"},
            "Received: best_of_n=3",
        ),
        (
            {"ties": "random", "quantiles": "pairs", "backward": "pooled"},
            "Received: quantiles='pairs', ties='random'",
        ),
        (
            {"num_anchor_samples": 1, "forward": "pooled"},
            '`quantiles="harmonic"` needs at least 2',
        ),
        ({"quantiles": "pairs", "best_of_n": 4}, "the reward of J-BOND"),
        (
            {"baseline": "prompt", "num_policy_samples": 1},
            "needs at least 2",
        ),
    ],
)
def test_choices_that_do_not_go_together_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        choose(**changes)


def test_a_density_ratio_distils_any_n():
    """Order statistics cannot give more than the samples there are."""
    choice = choose(best_of_n=16, forward="density_ratio", quantiles="learned")
    assert choice.forward == "density_ratio"


@pytest.mark.parametrize("samples, baseline", [(1, "mixed"), (4, "batch")])
def test_some_baselines_need_other_prompts(samples, baseline):
    assert choose(
        num_policy_samples=samples, baseline=baseline, backward="policy_samples"
    ).needs_other_prompts


def test_the_tie_table_is_that_of_the_choice():
    choice = choose(best_of_n=4, quantiles="monte_carlo", ties="strict")
    expected = formulas.tie_table(formulas.monte_carlo_table(4), 4, "strict")
    assert choice.tie_table() == expected
