"""What a reward may answer: exact in float64, or refused by its name."""

import decimal
import fractions
import json

import keras
import numpy as np
import pytest

from keras_bond import rewards
from keras_bond.rewards import scores as scores_lib
from keras_bond.training.metrics import RewardMetrics
from tests.rewards.samples import samples

FOUR = samples(["a", "bb", "ccc", "dddd"])
NAN = float("nan")


def answering(answer):
    """A reward function of the name `judge`."""

    def judge(prompts, completions):
        return answer

    return judge


def score(answer, **arguments):
    return rewards.get(answering(answer), **arguments)(FOUR)


def tensor(values, dtype):
    return keras.ops.cast(keras.ops.convert_to_tensor(values), dtype)


def torch_tensor(values, **arguments):
    return pytest.importorskip("torch").tensor(values, **arguments)


def torch_bfloat16():
    torch = pytest.importorskip("torch")
    return torch_tensor(
        [1.0, 2, 3, 4], dtype=torch.bfloat16, requires_grad=True
    )


ONE_TO_FOUR = {
    "list": lambda: [1, 2.0, True + 2, 4],
    "tuple": lambda: (1, 2, 3, 4),
    "booleans": lambda: [True, np.True_, np.bool_(True), False],
    "integers": lambda: np.arange(1, 5),
    "column": lambda: np.arange(1.0, 5)[:, None],
    "float16": lambda: np.arange(1, 5, dtype="float16"),
    "long double": lambda: np.arange(1, 5).astype(np.longdouble),
    "objects": lambda: np.array([1, 2.0, np.int8(3), True + 3], dtype=object),
    "decimals": lambda: [decimal.Decimal(n) for n in (1, 2, 3, 4)],
    "fractions": lambda: [fractions.Fraction(n) for n in (1, 2, 3, 4)],
    "arrays of one": lambda: [np.array([n]) for n in (1, 2, 3, 4)],
    "no mask": lambda: np.ma.array([1, 2, 3, 4]),
    "Keras tensor": lambda: tensor([1, 2, 3, 4], "float32"),
    "Keras bfloat16": lambda: tensor([1, 2, 3, 4], "bfloat16"),
    "Keras tensors": lambda: list(tensor([1, 2, 3, 4], "bfloat16")),
    "Keras variable": lambda: keras.Variable([1.0, 2.0, 3.0, 4.0]),
    "PyTorch": lambda: torch_tensor([1, 2, 3, 4]),
    "PyTorch bfloat16": torch_bfloat16,
    "PyTorch column": lambda: torch_bfloat16()[:, None],
    "PyTorch scalars": lambda: list(torch_bfloat16()),
    "pandas": lambda: pytest.importorskip("pandas").Series([1, 2, 3, 4]),
    "pandas frame": lambda: pytest.importorskip("pandas").DataFrame(
        {"score": [1, 2, 3, 4]}
    ),
    "pyarrow": lambda: pytest.importorskip("pyarrow").array([1, 2, 3, 4]),
}


@pytest.mark.parametrize("kind", ONE_TO_FOUR)
def test_numbers_of_every_library_are_scores(kind):
    expected = [1, 1, 1, 0] if kind == "booleans" else [1, 2, 3, 4]
    got = score(ONE_TO_FOUR[kind]())
    assert got.dtype == "float64" and got.tolist() == expected


def test_masked_entries_are_unscored():
    """Pins: the number under the mask was the score."""
    for shape in ((4,), (4, 1)):
        masked = np.ma.array([1.0, 2, 3, 4], mask=[0, 1, 0, 0]).reshape(shape)
        np.testing.assert_array_equal(score(masked), [1, NAN, 3, 4])
    mixed = [1.0, np.ma.masked, None, 4]
    np.testing.assert_array_equal(score(mixed), [1, NAN, NAN, 4])


REFUSED = [
    [1, 2, 3, 10**400],
    [1, 2, 3, 10**5000],
    [1, 2, 3, -(2**110)],
    [1, 2, 3, fractions.Fraction(10**400)],
    [1, 2, 3, decimal.Decimal("1e400")],
    [1, 2, 3, decimal.Decimal("sNaN")],
    [1, 2, 3, 1e31],
    np.array([1, 2, 3, 1e39]),
    [1, 2, 3, NAN],
    [1, 2, 3, decimal.Decimal("NaN")],
    [1, 2, 3, 1j],
    [1, 2, 3, "4"],
    [1, 2, 3, b"4"],
    [1, 2, 3, [4]],
    [1, 2, 3, {"score": 4}],
    [1, 2, 3, np.str_("4")],
    [1, 2, 3, np.array([4, 5])],
    [1, 2, 3, np.timedelta64(4, "ns")],
    np.arange(4).astype("datetime64[ns]"),
    np.array(["1", "2", "3", "4"]),
    np.array([1, 2, 3, [4]], dtype=object),
    np.ones((2, 2)),
    np.ones((1, 4)),
    np.ones((4, 2)),
    np.array(1.0),
    {"a": 1, "b": 2, "c": 3, "d": 4},
    {1.0, 2.0, 3.0, 4.0},
    "1234",
    b"1234",
    1.0,
    None,
    (n for n in range(4)),
    object(),
]


@pytest.mark.parametrize("answer", REFUSED, ids=lambda a: type(a).__name__)
def test_everything_else_is_refused_by_name(answer):
    with pytest.raises((TypeError, ValueError), match="`judge`.* Received"):
        score(answer)


def test_missing_values_of_pandas_are_refused_by_name():
    pandas = pytest.importorskip("pandas")
    for dtype, missing in (
        ("Int64", None),
        ("float64", None),
        ("object", pandas.NA),
    ):
        answer = pandas.Series([1, 2, 3, missing], dtype=dtype)
        with pytest.raises((TypeError, ValueError), match="`judge`"):
            score(answer)


@keras.saving.register_keras_serializable(package="tests")
class Answering(keras.layers.Layer):
    """A reward on the device that answers anything."""

    def __init__(self, answer):
        super().__init__(name="judge")
        self.answer = answer

    def call(self, inputs):
        return self.answer(keras.ops.cast(inputs["token_ids"], self.dtype))


def test_models_answer_one_number_for_each_row():
    got = rewards.get(Answering(lambda ids: ids[:, :1] / 0.7))(FOUR)
    exact = np.float64(np.float32(97) / np.float32(0.7))
    assert got.dtype == "float64" and got[0] == pytest.approx(exact, rel=1e-7)
    for answer in (
        lambda ids: {"score": ids[:, 0], "value": ids[:, 1]},
        lambda ids: [ids[:, :1], ids[:, :1]],
        lambda ids: ids,
        lambda ids: ids[:2, :2],
        lambda ids: ids[:, 0] / 0.0,
        lambda ids: ids[:, 0] * 1e31,
    ):
        with pytest.raises((TypeError, ValueError), match="`judge`"):
            rewards.get(Answering(answer))(FOUR)


def test_small_differences_keep_their_order():
    """Pins: cut to float32, 1e6 + 0.001 x ties everywhere."""
    small = [3.0, 1.0, 2.0, 2.0]
    offset = [1e6 + 1e-3 * x for x in small]
    constant = answering([1.0] * 4)
    for reward in (
        rewards.get(answering(offset)),
        rewards.get([constant, answering(small)], [1e6, 1e-3]),
        rewards.get([rewards.get(answering(offset)), constant]),
        rewards.Cached(answering(offset)),
        rewards.ConcurrentReward(answering(offset)),
        rewards.UnfinishedLast(answering(offset)),
        rewards.RankFusion([answering(offset)]),
        rewards.Cached(rewards.RankFusion([answering(offset)])),
        rewards.get(rewards.Classifier(lambda texts: np.array(offset))),
    ):
        part = samples(FOUR.completions, terminated=[True] * 4)
        got = reward(part)
        assert got.dtype == "float64"
        assert got[1] < got[2] == got[3] < got[0], reward.name


def test_scores_come_back_from_a_file_in_float64(tmp_path):
    path = tmp_path / "scores.sqlite"
    values = [0.1, 1e6 + 1e-3, -1e30, 2.0**70]
    rewards.Cached(answering(values), path)(FOUR)
    assert rewards.Cached(None, path)(FOUR).tolist() == values


@pytest.mark.parametrize(
    "answers, weights, name",
    [
        ([[1.0, 2, 3, 1e25]], [1e10], "judge"),
        ([[1.0, 2, 3, 1e25]], [1e300], "judge"),
        # The sum is 0 times infinity, which was a prompt without a score.
        ([[1e30] * 4, [1e30] * 4], [1e300, -1e300], "judge"),
        ([[9e29] * 4, [9e29] * 4], None, r"judge\+judge"),
    ],
)
def test_sums_and_products_that_overflow_are_refused(answers, weights, name):
    """Pins: infinite ones were prompts without a score."""
    reward = rewards.get([answering(answer) for answer in answers], weights)
    with pytest.raises(ValueError, match=f"`{name}` .*`reward_weights`"):
        reward(FOUR)


def test_scores_that_are_logged_in_float32_are_finite():
    largest = score([scores_lib.LARGEST] * 4)
    assert np.isfinite(np.sum(largest.astype("float32"), dtype="float32"))


def test_weights_of_ranks_do_not_overflow():
    one, other = answering([1, 2, 3, 4]), answering([1, 2, 4, 3])
    for weight in (1.0, 1e308, 1e-308):
        fused = rewards.RankFusion([one, other], [weight, weight])
        np.testing.assert_allclose(fused(FOUR), [0, 1 / 3, 5 / 6, 5 / 6])


class Subclass(rewards.Reward):
    """A reward of a user, that answers anything."""

    def __init__(self, answer):
        self.answer = answer

    def score(self, samples):
        return self.answer


def test_scores_of_subclasses_are_checked():
    part = rewards.get(Subclass(np.array([1, NAN, 3, 4], "float32")))
    np.testing.assert_array_equal(part(FOUR), [1, NAN, 3, 4])
    masked = np.ma.array([1.0, 2, 3, 4], mask=[0, 1, 0, 0])
    for answer in (masked, [1, np.ma.masked, 3, 4], [1, None, 3, 4]):
        got = rewards.get(Subclass(answer))(FOUR)
        np.testing.assert_array_equal(got, [1, NAN, 3, 4])
    for kind, make in ONE_TO_FOUR.items():
        if kind != "booleans":
            got = rewards.get(Subclass(make()))(FOUR)
            assert got.tolist() == [1, 2, 3, 4], kind
    for answer in REFUSED_OF_SUBCLASSES:
        with pytest.raises((TypeError, ValueError), match="`Subclass` must re"):
            rewards.get(Subclass(answer))(FOUR)


REFUSED_OF_SUBCLASSES = [
    np.ones(3),
    np.ones((2, 2)),
    np.full(4, np.inf),
    1.0,
    np.ones(4, "complex64"),
    ["1", "2", "3", "4"],
    [10**400] * 4,
    np.arange(4).astype("datetime64[ns]"),
]


def test_what_is_logged_keeps_its_gaps_and_ends_no_training():
    """Pins: numbers under masks; an integer that Python does not write."""
    part = samples(["a", "bb", "ccc", "dddd"])
    masked = np.ma.array([1.0, 2, 3, 4], mask=[0, 1, 0, 0])

    def judge(prompts, completions, log_metric, log_extra):
        for value in (np.ma.masked, masked[1:2], 2.0):
            log_metric("m", value)
        log_extra("row", masked)
        log_extra("column", masked[:, None])
        log_extra("large", [10**5000, [10**5000], 10**400, None])
        return [0.0] * 4

    rewards.get(judge)(part)
    np.testing.assert_array_equal(part.log.metrics["m"], [NAN, NAN, 2.0])
    means = RewardMetrics()
    for value, mean in ((NAN, NAN), (2.0, 2.0), (NAN, 2.0), (4.0, 3.0)):
        means.add({"m": [value, NAN]})
        np.testing.assert_equal(means.end_step(), {"rewards/m": mean})
    assert part.log.columns["row"] == [1, None, 3, 4]
    assert part.log.columns["column"] == [1, None, 3, 4]
    large = part.log.columns["large"]
    assert large[0] == "a value of type int" and large[2] == 10**400
    assert json.dumps(large) and large[3] is None


def test_classifiers_answer_numbers_of_every_library():
    for kind, make in ONE_TO_FOUR.items():
        if kind != "booleans":
            reward = rewards.get(rewards.Classifier(lambda texts, m=make: m()))
            assert reward(FOUR).tolist() == [1, 2, 3, 4], kind
    both = [[9.0, n] for n in (1, 2, 3, 4)]
    for answer in (np.array(both), tensor(both, "bfloat16"), np.ma.array(both)):
        reward = rewards.get(rewards.Classifier(lambda texts, a=answer: a, 1))
        assert reward(FOUR).tolist() == [1, 2, 3, 4]
    for answer in ([10**400] * 4, np.ones((4, 2)), ["good"] * 4):
        reward = rewards.get(rewards.Classifier(lambda texts, a=answer: a))
        with pytest.raises((TypeError, ValueError), match="must return"):
            reward(FOUR)
    with pytest.raises(ValueError, match="`label` must be among"):
        rewards.get(rewards.Classifier(lambda texts: np.array(both), 2))(FOUR)
