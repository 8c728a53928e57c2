"""Trainers and reward models with the chat format of their model."""

import copy

import keras
import numpy as np
import pytest

import keras_bond
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import chat_vocabulary
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}<end_of_turn>"
    "{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)
ASKED = [{"role": "user", "content": "a fox"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "the "}]


@keras.saving.register_keras_serializable(package="tests")
def last_words(turns):
    return turns[-1]["content"]


@keras.saving.register_keras_serializable(package="tests")
def brevity(prompts, completions):
    return [-len(completion[0]["content"]) for completion in completions]


def make_bond(reward=brevity, **arguments):
    return keras_bond.Bond(
        make_policy(num_layers=1, proto=chat_vocabulary()),
        reward,
        num_policy_samples=2,
        num_anchor_samples=2,
        max_prompt_length=99,
        max_completion_length=4,
        seed=0,
        **arguments,
    )


def prompt_of(bond, chat):
    (text,) = bond.draw_scored([chat])[0].prompts
    return text


@pytest.mark.parametrize("template", ["auto", TEMPLATE, last_words])
def test_a_saved_trainer_keeps_its_template(tmp_path, template):
    bond = make_bond(chat_template=template)
    text = prompt_of(bond, ASKED)
    assert (
        text
        == {
            "auto": "<start_of_turn>user\na fox<end_of_turn>\n"
            "<start_of_turn>model\n",
            TEMPLATE: "user: a fox<end_of_turn>assistant: ",
            last_words: "a fox",
        }[template]
    )
    bond.save(tmp_path / "bond.keras")
    loaded = keras.saving.load_model(tmp_path / "bond.keras")
    assert loaded.chat_template == template
    assert prompt_of(loaded, ASKED) == text
    assert loaded.generate([BEGUN]) == bond.generate([BEGUN])


def test_a_template_of_the_tokenizer_is_saved():
    """As of a policy from a Hugging Face folder, which brings its own."""
    policy = make_policy(num_layers=1, proto=chat_vocabulary())
    policy.preprocessor.tokenizer.chat_template = TEMPLATE
    bond = keras_bond.JBond(
        policy, brevity, max_prompt_length=99, max_completion_length=4
    )
    assert bond.get_config()["chat_template"] == TEMPLATE
    assert bond.stop_token_ids == (1, 5)
    reward_model = keras_bond.RewardModel(policy)
    assert reward_model.get_config()["chat_template"] == TEMPLATE


@pytest.mark.parametrize("template", [TEMPLATE + "{%", "{{ x", TEMPLATE[:5]])
def test_a_wrong_template_of_a_reward_model_is_refused_at_once(template):
    """Pins: only the first `fit` or score said so."""
    with pytest.raises(ValueError, match="`chat_template`"):
        keras_bond.RewardModel(
            make_policy(num_layers=1, proto=chat_vocabulary()),
            chat_template=template,
        )
    other = TEMPLATE.replace("<end_of_turn>", "<|im_end|>")
    with pytest.raises(ValueError, match="ends turns with '<.im_end.>'"):
        keras_bond.RewardModel(make_policy(num_layers=1), chat_template=other)


@pytest.mark.parametrize("make", [make_bond, None])
def test_an_unregistered_function_is_refused_when_saving(tmp_path, make):
    model = make and make(chat_template=lambda turns: "a")
    model = model or keras_bond.RewardModel(
        make_policy(num_layers=1), chat_template=lambda turns: "a"
    )
    path = tmp_path / "model.keras"
    with pytest.raises(ValueError, match="must be registered to be saved"):
        model.save(path)
    assert not path.exists()


def test_an_answer_that_has_begun_is_one_turn_with_its_completion():
    """As in TRL. Spaces that Gemma's format removes are not scored either."""
    seen = []

    def watch(prompts, completions):
        seen.extend(zip(prompts, completions))
        return [0.0] * len(prompts)

    bond = make_bond(watch)
    samples, _ = bond.draw_scored([BEGUN, ASKED], num_samples=2)
    assert samples.prompts[0].endswith("<start_of_turn>model\nthe")
    texts = samples.completions
    for (prompt, completion), start, text in zip(
        seen, ["the", "the", "", ""], texts
    ):
        assert prompt == ASKED
        assert completion == [{"role": "assistant", "content": start + text}]


def test_a_step_from_conversations():
    bond = make_bond(chat_template=TEMPLATE)
    bond.compile("sgd", **COMPILED_QUICKLY)
    history = bond.fit([ASKED, BEGUN] * 2, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_a_reward_model_reads_the_policys_tokens_or_its_own():
    """Its own where it was trained with another template."""
    bond = make_bond(chat_template=TEMPLATE)
    samples, _ = bond.draw_scored([ASKED, BEGUN])
    policy = make_policy(num_layers=1, proto=chat_vocabulary())
    pairs = {
        "prompt": [BEGUN],
        "chosen": [[{"role": "assistant", "content": "dog"}]],
        "rejected": [[{"role": "assistant", "content": "cat"}]],
    }
    for template, start in ((TEMPLATE, "user: "), ("auto", "<start_of_turn>")):
        model = keras_bond.RewardModel(
            policy, max_length=128, chat_template=template
        )
        model.batches_seen.assign(1)
        encode = policy.preprocessor.tokenizer
        ids = model.encode_pairs(pairs)[0]["token_ids"][0, 0].tolist()
        whole = [int(i) for i in encode(start)]
        assert ids[: 1 + len(whole)] == [2, *whole]
        assert ids[-5:] == [*map(int, encode("dog")), 5]
        inputs = model.reward_inputs(samples)
        row = inputs["token_ids"][0].tolist()
        assert row[: 1 + len(whole)] == [2, *whole]
        if template == TEMPLATE:
            assert inputs["token_ids"] is samples.token_ids
    copied = copy.deepcopy(model)
    assert copied.chat_template == "auto"
