"""Images of prompts are read as KerasHub's preprocessors read them."""

import json
import re

import keras
import numpy as np
import pytest

from keras_bond.data import images
from keras_bond.data import prompts
from keras_bond.data import prompts_from
from keras_bond.data.tokenizer import TextTokenizer
from keras_bond.rewards import Cached
from tests import tiny
from tests.pictures import SIZE
from tests.pictures import TOKENS
from tests.pictures import WRITTEN
from tests.pictures import make_policy
from tests.pictures import picture
from tests.pictures import prompts_of

FAMILIES = ["gemma3", "gemma4"]
MARK = WRITTEN["gemma3"]


def encoder_of(policy, length=30, truncate=None):
    tokenizer = TextTokenizer(policy.preprocessor)
    reader = images.reader_of(policy)
    return prompts.PromptEncoder(tokenizer, (length,), 60, truncate, reader)


@pytest.fixture(scope="module")
def encoder():
    return encoder_of(make_policy("gemma3"))


def read(encoder, **columns):
    """The column of images, and the inputs of the network for a batch."""
    columns.setdefault("prompts", [f"fox {MARK} a"])
    batches = prompts.to_batches(columns, encoder, len(columns["prompts"]))
    return batches.table.columns.get("images"), batches[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_kerashubs_preprocessor(family):
    """Token ids, positions and pixels, also of an image that is resized."""
    policy, data = make_policy(family), prompts_of(family)
    data["images"][0] = picture(1, 2 * SIZE, 3 * SIZE)
    _, inputs = read(encoder_of(policy), **data)
    for i in (0, 1):
        pictures = data["images"][i] if i else [data["images"][0]]
        own = policy.preprocessor.generate_preprocess(
            {
                "prompts": [data["prompts"][i]],
                "images": np.stack(pictures)[None],
            },
            sequence_length=30,
        )
        own = {k: keras.ops.convert_to_numpy(v)[0] for k, v in own.items()}
        np.testing.assert_array_equal(own["token_ids"], inputs["prompt_ids"][i])
        for name in set(inputs) & set(own):
            found, expected = inputs[name][i], own[name]
            if name in ("images", "pixel_values", "pixel_position_ids"):
                found = found[: len(pictures)]
                expected = expected[: len(pictures)]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_forms_of_the_column(encoder):
    """One image or several, as arrays, lists, tensors, or of PIL."""
    one = picture(1)
    pil = pytest.importorskip("PIL.Image").fromarray(one)
    forms = [
        [one],
        [[one]],
        [[one.tolist()]],
        [one.tolist()],
        one[None],
        one[None, None],
        [pil],
        [[pil]],
        keras.ops.convert_to_tensor(one[None]),
        [(one.astype("float32"),)],
        objects(one),
        objects([one]),
        [objects(one)],
        [objects(one)[0:1].reshape(())],
        [one.astype(object)],
        [[one.astype(object)]],
        one.astype(object)[None],
    ]
    for form in forms:
        column, _ = read(encoder, images=form)
        assert len(column[0]) == 1
        np.testing.assert_array_equal(column[0][0], one)
    no_object = objects(None).reshape(())
    for nothing in (None, [], np.zeros((0, SIZE, SIZE, 3)), no_object):
        assert read(encoder, prompts=["fox"], images=[nothing])[0] == [[]]


def objects(*values):
    """An array of objects, as data frames have them."""
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def test_rows_and_data_sets_keep_the_pixels(encoder):
    """Rows of dicts, with `prompts_from` or without, and tf.data."""
    tf = pytest.importorskip("tensorflow")
    text = f"fox {MARK} a"
    rows = [{"prompt": text, "images": picture(i)} for i in range(3)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    data = tf.data.Dataset.from_tensor_slices(
        {"prompt": columns["prompt"], "images": np.stack(columns["images"])}
    )
    for given in (rows, data, data.batch(2), prompts_from(rows, "prompt")):
        batches = prompts.to_batches(given, encoder)
        for i, images_of_one in enumerate(batches.table.columns["images"]):
            np.testing.assert_array_equal(images_of_one[0], picture(i))
    stream = prompts.to_batches(data.repeat(), encoder, 2)
    assert stream[0][0]["images"].shape == (2, 2, SIZE, SIZE, 3)
    table = stream.take([0, 1])
    np.testing.assert_array_equal(table.columns["images"][1][0], picture(1))


def test_token_ids_with_images(encoder):
    _, text = read(encoder, images=[picture(1)])
    ids = text["prompt_ids"][0, : text["prompt_lengths"][0]].tolist()
    batches = prompts.to_batches(
        {"token_ids": [ids], "images": [picture(1)]}, encoder
    )
    np.testing.assert_array_equal(batches[0][0]["images"], text["images"])
    token = encoder.tokenizer.tokenizer.image_placeholder_id
    for wrong in ([token] * TOKENS + [5], [2, 5] + [token] * TOKENS):
        with pytest.raises(ValueError, match="begin or end with"):
            prompts.to_batches(
                {"token_ids": [wrong], "images": [picture(1)]}, encoder
            )


GRAY, SMALL = picture(1)[:, :, 0], picture(1) / 255.0
WRONG = {
    "no placeholder": (["fox"], [picture(1)], "1 images and 0 of"),
    "no image": ([f"a {MARK} b"], [[]], "prompt 0 with 0 images and 1 of"),
    "two for one": ([f"a {MARK} b"], [[picture(1)] * 2], "2 images and 1 of"),
    "too many": (
        [f"a {MARK} {MARK} {MARK} b"],
        [[picture(1)] * 3],
        "max_images_per_prompt = 3",
    ),
    "an image token": ([f"a <img> {MARK} b"], [picture(1)], "5 / 4 of"),
    "gray": ([f"a {MARK} b"], [GRAY], r"shape \(16, 16\) in prompt 0"),
    "colors first": (
        [f"a {MARK} b"],
        [picture(1).transpose(2, 0, 1)],
        r"shape \(3, 16, 16\)",
    ),
    "transparent": ([f"a {MARK} b"], [picture(1)[:, :, [0, 1, 2, 0]]], "4"),
    "empty": (
        ["fox"],
        [picture(1)[:0]],
        r"one pixel.*\(0, 16, 3\) in prompt 0",
    ),
    "narrow": ([f"a {MARK} b"], [[picture(1)[:, :0]]], "at least one pixel"),
    "below 1": ([f"a {MARK} b"], [SMALL], "multiply those between 0 and 1"),
    "negative": ([f"a {MARK} b"], [picture(1) - 300.0], "from 0 to 255"),
    "not a number": ([f"a {MARK} b"], [picture(1) * np.nan], "from 0 to 255"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_does_not_fit_together_is_named(encoder, mistake):
    texts, pictures, message = WRONG[mistake]
    with pytest.raises(ValueError, match=message):
        read(encoder, prompts=texts, images=pictures)


def test_paths_and_booleans_are_no_images(encoder):
    for value in (
        "cat.png",
        picture(1) > 3,
        [["cat.png"]],
        {"path": "cat.png"},
    ):
        with pytest.raises(TypeError, match="open files first"):
            read(encoder, images=[value])


def test_a_placeholder_without_a_column_is_refused(encoder):
    with pytest.raises(ValueError, match="0 images and 1 of"):
        read(encoder)


def test_strips_have_as_many_tokens_as_other_images_or_are_refused():
    """Pins: KerasHub's converter gives them more, and nothing could stack."""
    encoder = encoder_of(make_policy("gemma4"))
    texts = ["fox", f"fox {WRITTEN['gemma4']} a"]
    usual = read(encoder, prompts=texts, images=[None, picture(1)])[1]
    for height, width in ((1, TOKENS), (3 * TOKENS, 3), (7, 5)):
        images = [None, picture(1, height, width)]
        _, inputs = read(encoder, prompts=texts, images=images)
        assert inputs["pixel_values"].shape == usual["pixel_values"].shape
    for height, width in ((40, 3), (1, TOKENS + 1), (3 * TOKENS + 1, 3)):
        images = [None, picture(1, height, width)]
        with pytest.raises(ValueError, match="at most 4 times.* in prompt 1"):
            read(encoder, prompts=texts, images=images)


def test_a_placeholder_that_would_be_read_as_text_is_refused(encoder):
    """By whom it is not meant for: text only, another family, no converter."""
    text_only = encoder_of(tiny.make_policy())
    without = make_policy("gemma3")
    without.preprocessor.image_converter = None
    for other, token in (
        (text_only, MARK),
        (text_only, WRITTEN["gemma4"]),
        (encoder_of(without), MARK),
        (encoder, WRITTEN["gemma4"]),
        (encoder, "<|audio|>"),
        (encoder_of(make_policy("gemma4")), "<|video|>"),
    ):
        rule = rf"not `{re.escape(token)}`.* as prompt 1"
        with pytest.raises(ValueError, match=rule):
            read(other, prompts=["fox", f"fox {token}"])


def test_prompts_with_images_are_not_truncated():
    encoder = encoder_of(make_policy("gemma3"), length=8, truncate="left")
    with pytest.raises(ValueError, match="its images cannot be truncated"):
        read(encoder, images=[picture(1)])


def test_columns_that_a_policy_does_not_read_are_named(encoder):
    """Videos and audio by anyone, images by a policy without an encoder."""
    for name in ("videos", "audios", "image"):
        with pytest.raises(ValueError, match=f"not the column `{name}`"):
            read(encoder, prompts=["fox"], **{name: [[1]]})
    text_only = encoder_of(tiny.make_policy())
    with pytest.raises(ValueError, match="reads text, and not the column `im"):
        read(text_only, prompts=["fox"], images=[picture(1)])


def test_a_converter_of_another_size_is_refused():
    for family, name in zip(FAMILIES, ("image_size", "max_soft_tokens")):
        policy = make_policy(family)
        converter = policy.preprocessor.image_converter
        value = (8, 8) if name == "image_size" else 9
        setattr(converter, name, value)
        text = f"fox {WRITTEN[family]} a"
        with pytest.raises(ValueError, match="must fit the vision encoder"):
            read(encoder_of(policy), prompts=[text], images=[picture(1)])


def test_scores_of_equal_images_are_saved(encoder):
    """Rewards share images, which they cannot change; `Cached` knows them."""
    seen = []

    def brightness(prompts, completions, images):
        seen.extend(images)
        return [float(np.mean(one[0])) for one in images]

    cached = Cached(brightness)
    for seed, calls in ((1, 1), (1, 1), (2, 2)):
        column, _ = read(encoder, images=[picture(seed)])
        samples = _samples(column)
        assert cached.score(samples.copy()) == [picture(seed).mean()]
        assert len(seen) == calls
    assert samples.copy().columns["images"][0][0] is column[0][0]
    with pytest.raises(ValueError, match="read-only"):
        seen[0][0][0] = 0


def _samples(column):
    from keras_bond.rewards import Samples

    return Samples(
        prompts=["p"],
        completions=["c"],
        columns={"images": column},
        token_ids=np.ones((1, 2), "int32"),
        padding_mask=np.ones((1, 2), bool),
        num_samples=1,
    )


def test_fingerprints_differ_where_images_do(encoder):
    """A run continues in the middle of an epoch with the same prompts only."""
    texts = [f"fox {MARK} a"]
    found = {
        prompts.to_batches(
            {"prompts": texts, "images": [picture(seed)]}, encoder
        ).fingerprint()
        for seed in (1, 1, 2)
    }
    assert len(found) == 2 and json.dumps(sorted(found))
