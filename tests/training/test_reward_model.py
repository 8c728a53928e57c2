"""A reward learned from pairs: its loss, its rows, and its use in training."""

import json
import math

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_bond
from keras_bond import rewards
from keras_bond.data import lengths
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import chat_vocabulary
from tests.tiny import make_policy
from tests.tiny import train_vocabulary

PAIRS = {
    "prompts": PROMPTS[:4],
    "chosen": ["the quick fox", "a b c d", "lazy dog", "jumps over"],
    "rejected": ["fox", "dog 1", "1 2 3", "the"],
}


def make_model(seed=0, lora=False, **arguments):
    policy = make_policy(seed=seed, scale=3.0, num_layers=1)
    if lora:
        keras.utils.set_random_seed(0)
        policy.backbone.enable_lora(2)
    arguments = {"max_length": 24, **arguments}
    model = keras_bond.RewardModel(policy, **arguments)
    kernel = np.random.default_rng(seed).normal(size=model.head.kernel.shape)
    model.head.kernel.assign(kernel.astype("float32"))
    return model


def fit(model, pairs=PAIRS, rate=1e-2, **arguments):
    model.compile(keras.optimizers.SGD(_constant(rate)), **COMPILED_QUICKLY)
    arguments = {"batch_size": 4, "verbose": 0, "shuffle": False, **arguments}
    return model.fit(pairs, **arguments).history


def _constant(rate):
    return keras.optimizers.schedules.ExponentialDecay(rate, 1000, 1.0)


def as_rows(pairs=PAIRS):
    names = ("prompts", "chosen", "rejected")
    return [
        {"prompt": p, "chosen": c, "rejected": r}
        for p, c, r in zip(*(pairs[name] for name in names))
    ]


def numpy_rewards(model, prompts, completions):
    """One row at a time, without padding: start, prompt, completion, end."""
    tokenizer = model.preprocessor.tokenizer
    scores = []
    for prompt, completion in zip(prompts, completions):
        ids = [2, *tokenizer(prompt), *tokenizer(completion), 1]
        ids = np.array([[int(i) for i in ids]], "int32")
        hidden = model.backbone(
            {"token_ids": ids, "padding_mask": np.ones_like(ids, bool)}
        )
        last = ops.convert_to_numpy(hidden)[0, -1]
        kernel = ops.convert_to_numpy(model.head.kernel)[:, 0]
        scores.append(float(last @ kernel + model.head.bias.numpy().item()))
    return np.array(scores)


def numpy_rewards_of_pairs(model, pairs=PAIRS):
    return [
        numpy_rewards(model, pairs["prompts"], pairs[name])
        for name in ("chosen", "rejected")
    ]


def test_the_reward_is_read_at_the_end_token_of_each_row():
    """Pins: a padded position, a missing end token, rows that mix."""
    model = make_model()
    expected = numpy_rewards(model, PAIRS["prompts"], PAIRS["chosen"])
    got = model.predict(PAIRS["prompts"], PAIRS["chosen"], batch_size=2)
    assert got.shape == (4,) and np.ptp(expected) > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_loss_and_metrics_are_those_of_the_formulas():
    """Pins: swapped completions, a margin of the wrong sign, a sum for a mean,
    a center of the difference."""
    margins = [0.5, 0.0, 1.0, 0.2]
    model = make_model(center_rewards_coefficient=0.1)
    chosen, rejected = numpy_rewards_of_pairs(model)
    losses = [
        math.log1p(math.exp(-(c - r - m))) + 0.1 * (c + r) ** 2
        for c, r, m in zip(chosen, rejected, margins)
    ]
    model.compile("sgd", **COMPILED_QUICKLY)
    logs = model.evaluate(
        {**PAIRS, "margin": margins}, batch_size=4, return_dict=True, verbose=0
    )
    expected = {
        "loss": np.mean(losses),
        "accuracy": np.mean(chosen > rejected),
        "margin": np.mean(chosen - rejected),
        "mean_reward": np.mean([chosen, rejected]),
    }
    assert logs == pytest.approx(expected, abs=1e-4)
    logs = fit(model, {**PAIRS, "margin": margins})
    assert {k: v[0] for k, v in logs.items()} == pytest.approx(
        expected, abs=1e-4
    )


def test_ties_are_half_right_at_the_start():
    model = keras_bond.RewardModel(make_policy(num_layers=1), max_length=24)
    model.compile("sgd", **COMPILED_QUICKLY)
    logs = model.evaluate(PAIRS, return_dict=True, verbose=0)
    assert logs["accuracy"] == 0.5
    assert logs["loss"] == pytest.approx(math.log(2))


def test_a_step_is_that_of_the_gradient():
    """The head's gradient by finite differences of the loss."""
    model = make_model()
    before = values_of([model.head.kernel])[0]
    model.compile("sgd", **COMPILED_QUICKLY)
    x, y = model.encode_pairs(PAIRS)

    def loss(kernel):
        model.head.kernel.assign(kernel)
        return model.evaluate(x, y, batch_size=4, verbose=0)[0]

    gradient = np.zeros_like(before)
    for i in range(len(before)):
        step = np.zeros_like(before)
        step[i] = 1e-2
        gradient[i] = (loss(before + step) - loss(before - step)) / 2e-2
    model.head.kernel.assign(before)
    fit(model, rate=0.1)
    moved = before - values_of([model.head.kernel])[0]
    np.testing.assert_allclose(moved, 0.1 * gradient, atol=2e-4)
    assert np.abs(gradient).max() > 0.05


def test_it_learns_which_of_two_is_better():
    """Preferred: more words. Held-out pairs of other lengths and words."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    words = "the quick brown fox jumps over lazy dog a b c 1 2 3".split()

    def draw(count):
        texts = [
            [" ".join(generator.choice(words, n)) for n in (long, short)]
            for short, long in zip(
                generator.integers(1, 4, count), generator.integers(4, 7, count)
            )
        ]
        chosen, rejected = map(list, zip(*texts))
        return {
            "prompts": ["fox"] * count,
            "chosen": chosen,
            "rejected": rejected,
        }

    model = keras_bond.RewardModel(
        make_policy(scale=3.0, num_layers=1), max_length=40
    )
    model.compile(keras.optimizers.Adam(_constant(1e-2)), **COMPILED_QUICKLY)
    history = model.fit(
        draw(256),
        batch_size=32,
        epochs=4,
        verbose=0,
        validation_data=draw(64),
    ).history
    assert history["val_loss"][-1] < 0.4 < history["loss"][0]
    assert history["val_accuracy"][-1] > 0.85


def test_every_source_of_pairs_learns_the_same(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in as_rows()))
    model = make_model()
    reference = model.encode_pairs(PAIRS)
    for pairs in (as_rows(), str(path), path):
        x, y = model.encode_pairs(pairs)
        for name in x:
            np.testing.assert_array_equal(x[name], reference[0][name])
        np.testing.assert_array_equal(y, reference[1])
    assert fit(make_model())["loss"] == fit(make_model(), path)["loss"]
    logs = fit(make_model(), reference[0], y=reference[1])
    assert logs["loss"] == fit(make_model())["loss"]


def test_pairs_of_hugging_face_and_their_splits():
    datasets = pytest.importorskip("datasets")
    pairs = datasets.Dataset.from_list(as_rows())
    assert fit(make_model(), pairs)["loss"] == fit(make_model())["loss"]
    with pytest.raises(ValueError, match="must be one split"):
        fit(make_model(), datasets.DatasetDict(train=pairs))


def test_weights_of_pairs_count():
    """Keras's own argument: a weight of 0 leaves a pair out."""
    x, y = make_model().encode_pairs(PAIRS)
    weighted, alone = make_model(), make_model()
    weights = np.array([0.0, 2.0, 0.0, 2.0], "float32")
    fit(weighted, x, y=y, sample_weight=weights)
    kept = {name: value[1::2] for name, value in x.items()}
    fit(alone, kept, y=y[1::2])
    for a, b in zip(values_of(weighted.weights), values_of(alone.weights)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_whole_texts():
    """Without prompts."""
    model = make_model(max_length=200)
    texts = [{"chosen": "the quick fox", "rejected": "dog"}]
    x, _ = model.encode_pairs(texts)
    tokens = [int(i) for i in model.preprocessor.tokenizer("the quick fox")]
    assert x["token_ids"][0, 0].tolist() == [2, *tokens, 1]
    whole = model.predict({name: rows[0] for name, rows in x.items()})
    np.testing.assert_allclose(
        model.predict(["the quick fox", "dog"]), whole, atol=1e-5
    )


def test_conversations_are_scored_to_their_end_of_turn():
    """With prompts apart, with whole conversations, and when asked later."""
    policy = make_policy(num_layers=1, proto=chat_vocabulary())
    model = keras_bond.RewardModel(policy, max_length=200)
    user = [{"role": "user", "content": "fox"}]
    answers = [[{"role": "assistant", "content": t}] for t in ("a b", "dog")]
    explicit = [{"prompt": user, "chosen": answers[0], "rejected": answers[1]}]
    implicit = [
        {"chosen": user + answers[0], "rejected": user + answers[1]},
    ]
    rows = [model.encode_pairs(pairs)[0] for pairs in (explicit, implicit)]
    np.testing.assert_array_equal(rows[0]["token_ids"], rows[1]["token_ids"])
    last = rows[0]["padding_mask"].sum(axis=-1) - 1
    assert rows[0]["token_ids"][0, 0, last[0, 0]] == 5
    scores = model.predict([user], ["a b"])
    trained = model.predict({k: v[0, :1] for k, v in rows[0].items()})
    np.testing.assert_allclose(scores, trained, atol=1e-5)


def test_long_rows_keep_their_start_and_their_end():
    model = make_model(max_length=6, truncate="left")
    x, _ = model.encode_pairs(PAIRS)
    full, _ = make_model(max_length=99).encode_pairs(PAIRS)
    count = full["padding_mask"][0, 0].sum()
    kept = [2, *full["token_ids"][0, 0, count - 5 : count]]
    assert x["token_ids"][0, 0].tolist() == kept


@pytest.mark.parametrize("lora", [False, True])
def test_a_saved_model_scores_and_learns_on_alike(tmp_path, lora):
    """Weights, tokenizer, adapters apart from kernels, optimizer."""
    model = make_model(lora=lora)
    if lora:
        assert len(model.trainable_variables) < 40
        frozen = values_of(model.non_trainable_variables)
    fit(model)
    if lora:
        after = values_of(model.non_trainable_variables)
        changed = [not np.array_equal(a, b) for a, b in zip(frozen, after)]
        assert sum(changed) == 1  # the count of batches
    path = tmp_path / "reward.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    asked = (PAIRS["prompts"], PAIRS["chosen"])
    np.testing.assert_array_equal(loaded.predict(*asked), model.predict(*asked))
    arguments = {"batch_size": 4, "verbose": 0, "shuffle": False}
    for one in (model, loaded):
        one.fit(PAIRS, **arguments)
    for a, b in zip(values_of(model.weights), values_of(loaded.weights)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_model_of_token_ids_has_no_preprocessor_to_save():
    backbone = make_policy(num_layers=1).backbone
    config = keras_bond.RewardModel(backbone, max_length=12).get_config()
    assert config["preprocessor"] is None
    assert keras_bond.RewardModel.from_config(config).preprocessor is None


def trained_model(**arguments):
    model = make_model(seed=3, **arguments)
    fit(model)
    return model


def record(bond):
    """Keeps what the trainer hands to its reward."""
    seen, score = [], bond._scorer.score

    def scored(samples):
        seen.append((samples, score(samples)))
        return seen[-1][1]

    bond._scorer.score = scored
    return seen


def other_tokenizer():
    """The same text in other pieces: characters, more or less."""
    proto = train_vocabulary(
        ["the quick brown fox jumps 1 2 lazy dog"] * 9,
        vocab_size=40,
        model_type="char",
    )
    return keras_hub.models.GemmaTokenizer(proto=proto)


@pytest.mark.parametrize("own_tokenizer", [False, True])
def test_it_is_the_reward_of_a_policy(own_tokenizer):
    """Token ids where the tokenizers agree, text where they do not.

    Pins: ids of the policy's vocabulary read by another one; an end token
    given to a truncated completion.
    """
    model = trained_model(max_length=64)
    if own_tokenizer:
        model = keras_bond.RewardModel(
            model.backbone, other_tokenizer(), max_length=128
        )
        fit(model)
    bond = keras_bond.JBond(
        make_policy(scale=2.0, num_layers=1),
        model,
        max_prompt_length=12,
        max_completion_length=5,
        seed=1,
    )
    bond.compile("sgd", **COMPILED_QUICKLY)
    seen = record(bond)
    bond.fit(PROMPTS, batch_size=8, verbose=0)
    ((samples, scores),) = seen
    ended = np.array(samples.terminated)
    assert ended.any() and not ended.all()
    stops = bond.stop_token_ids
    assert ended.tolist() == [
        ids[-1] in stops for ids in samples.completion_ids
    ]
    if own_tokenizer:
        expected = model.predict(samples.prompts, samples.completions)
        cut = model._encoder()(
            samples.prompts, samples.completions, [False] * len(ended)
        )
        unfinished = model.predict(lengths.pad(cut))
        expected = np.where(ended, expected, unfinished)
    else:
        expected = model.predict(
            {
                "token_ids": samples.token_ids,
                "padding_mask": samples.padding_mask,
            }
        )
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.ptp(scores) > 1e-3


def test_an_untrained_model_does_not_judge():
    """Nor one whose weights were lost with the trainer's file."""
    samples = rewards.Samples(["p"], ["c"], {}, np.ones((1, 2)), None, 1)
    with pytest.raises(ValueError, match="must be trained before it scores"):
        rewards.get(make_model())(samples)


BAD_PAIRS = [
    ({**PAIRS, "margins": [1] * 4}, ValueError, "unknown columns .'margins'."),
    (
        {"chosen": ["a"]},
        ValueError,
        'must have columns "chosen" and "rejected"',
    ),
    ({**PAIRS, "chosen": ["a"]}, ValueError, "one entry for each pair"),
    ({"chosen": [], "rejected": []}, ValueError, "at least one preference"),
    ([], ValueError, "at least one preference"),
    (["a", "b"], TypeError, "must be a list of dicts"),
    ("pairs.csv", TypeError, "the path of a .jsonl file"),
    ([{"chosen": "a", "rejected": "b"}, {}], ValueError, "same columns"),
    ({"chosen": ["a"], "rejected": [1]}, TypeError, "`rejected` must be str"),
    ({**PAIRS, "margin": [None] * 4}, ValueError, "`margin` must be finite"),
    (
        {"chosen": ["a " * 40], "rejected": ["b"]},
        ValueError,
        "`max_length` tok",
    ),
    (
        {
            "chosen": [[{"role": "user", "content": "a"}]],
            "rejected": [[{"role": "user", "content": "a"}]],
        },
        ValueError,
        'must end with a turn of "assistant"',
    ),
]


@pytest.mark.parametrize("pairs, error, text", BAD_PAIRS)
def test_what_are_no_pairs_is_named(pairs, error, text):
    with pytest.raises(error, match=text):
        fit(make_model(), pairs)


def test_what_is_no_setting_is_named():
    policy = make_policy()
    model = keras_bond.RewardModel(policy.backbone)
    with pytest.raises(ValueError, match="`preprocessor` must be given"):
        model.encode_pairs(PAIRS)
    with pytest.raises(ValueError, match="`truncate` must be one of"):
        keras_bond.RewardModel(policy, truncate="right")
    with pytest.raises(ValueError, match="`max_length` must be an integer"):
        keras_bond.RewardModel(policy, max_length=1)
    with pytest.raises(ValueError, match="`center_rewards_coefficient` must"):
        keras_bond.RewardModel(policy, center_rewards_coefficient=-1.0)
    with pytest.raises(ValueError, match="`loss` must be left out"):
        model.compile("sgd", loss="mse")
    with pytest.warns(UserWarning, match="far above the usual 1e-05"):
        model.compile("adam")
    with pytest.raises(ValueError, match="one entry per prompt"):
        make_model().predict(["a"], ["b", "c"])
    low = keras_bond.RewardModel(make_policy(dtype="bfloat16"))
    with pytest.raises(ValueError, match="cannot move bfloat16"):
        low.compile(keras.optimizers.Adam(_constant(1e-5)))
    compiled = make_model()
    compiled.compile("sgd")
    with pytest.raises(ValueError, match="have no targets"):
        compiled.fit(PAIRS, y=[1.0])
    with pytest.raises(ValueError, match="must not share trainable"):
        keras_bond.JBond(
            policy,
            keras_bond.RewardModel(policy),
            max_prompt_length=12,
            max_completion_length=5,
        )
