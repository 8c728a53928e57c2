"""What cannot be exported is refused by name, before anything is written."""

import importlib.util
import shutil

import keras
import pytest

import keras_bond
from keras_bond.export import checks
from keras_bond.export import saved_model
from tests.export.conftest import LENGTHS
from tests.tiny import chat_vocabulary
from tests.tiny import length_reward
from tests.tiny import make_policy

TEMPLATE = "{% for m in messages %}{{ m.content }}<stop>{% endfor %}"


def export(policy, path, **arguments):
    return keras_bond.export.export_saved_model(
        policy, path / "policy", **{**LENGTHS, **arguments}
    )


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path):
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"max_prompt_length": 0}, "`max_prompt_length` must be an integer"),
        ({"max_new_tokens": 1.5}, "`max_new_tokens` must be an integer"),
        ({"max_prompt_length": 1}, "`max_prompt_length` must leave room"),
        ({"prompt_template": "a{prompt}" * 17}, "must contain `{prompt}`"),
        ({"prompt_template": "a" * 40 + "{prompt}"}, "must leave room"),
        ({"prompt_template": "Answer:"}, "must contain `{prompt}`"),
        ({"stop_token_ids": []}, "`stop_token_ids` must be"),
        ({"stop_token_ids": [999]}, "`stop_token_ids` must be"),
        ({"best_of_n": 1}, "`best_of_n` must be an integer of at least 2"),
        ({"version": "next"}, '`version` must be "auto" or a positive'),
        ({"version": 0}, '`version` must be "auto" or a positive'),
        ({"dtype": "int8"}, '`dtype` must be "auto" or one of'),
        ({"prompts": ["fox " * 20]}, "`prompts` must contain one that fits"),
    ],
)
def test_arguments_out_of_range_are_named(policy, tmp_path, arguments, text):
    with pytest.raises(ValueError, match=text):
        export(policy, tmp_path, **arguments)


@pytest.mark.parametrize(
    "arguments, stops, silent",
    [
        ({"chat_template": TEMPLATE}, [1, 6], [0, 1, 2, 6]),
        ({"stop_token_ids": (7, 1)}, [1, 7], [0, 1, 2, 5]),
        # Nothing ended a completion in training, but must in a server.
        ({"stop_token_ids": ()}, [1, 5], [0, 1, 2, 5]),
        (None, [1, 5], [0, 1, 2, 5]),
    ],
)
def test_what_ended_completions_in_training_ends_them_in_the_server(
    tmp_path, monkeypatch, arguments, stops, silent
):
    """Also once the trainer is gone; pins: the chat format of the tokenizer."""
    markers = ("<start_of_turn>", "<end_of_turn>", "<stop>")
    policy = make_policy(num_layers=1, proto=chat_vocabulary(markers))
    if arguments is not None:
        keras_bond.JBond(
            policy,
            length_reward,
            max_prompt_length=8,
            max_completion_length=8,
            **arguments,
        )
    jobs = []
    monkeypatch.setattr(
        saved_model, "_write", lambda *arguments: jobs.append(arguments[2])
    )
    export(policy, tmp_path)
    export(policy, tmp_path, stop_token_ids=[8])
    assert [job["stop_token_ids"] for job in jobs] == [stops, [8]]
    assert jobs[0]["special_token_ids"] == silent


def test_what_is_no_language_model_is_refused(policy, tmp_path):
    with pytest.raises(TypeError, match="KerasHub causal language model"):
        export(keras.Sequential([keras.layers.Dense(1)]), tmp_path)
    bond = keras_bond.JBond(
        policy, length_reward, max_prompt_length=8, max_completion_length=8
    )
    with pytest.raises(TypeError, match="for a trainer, pass `bond.policy`"):
        export(bond, tmp_path)


def test_text_needs_a_tokenizer_that_runs_in_the_graph(policy, tmp_path):
    """Without one, token ids are served, with a warning, but no `sample`."""
    policy.preprocessor.tokenizer.proto = None
    with pytest.raises(ValueError, match="`best_of_n` must be `None`"):
        checks.serves_text(policy, best_of_n=2)
    with pytest.warns(UserWarning, match="token ids only"):
        assert not checks.serves_text(policy, best_of_n=None)
    policy.preprocessor = None
    with pytest.raises(ValueError, match="must have a preprocessor"):
        export(policy, tmp_path)


def test_a_vocabulary_beyond_the_embedding_is_refused(tmp_path):
    policy = make_policy(vocabulary_size=50)
    with pytest.raises(ValueError, match="an embedding of 50"):
        export(policy, tmp_path)


def test_an_unknown_input_is_refused(policy, tmp_path, monkeypatch):
    inputs = {**policy.backbone.input, "depths": keras.Input((8, 8, 3))}
    backbone = type(policy.backbone)
    monkeypatch.setattr(backbone, "input", property(lambda self: inputs))
    with pytest.raises(ValueError, match="also needs .*depths"):
        export(policy, tmp_path)


def test_a_quantised_policy_is_refused(policy, tmp_path):
    policy.backbone.transformer_layers[0].attention.query_dense.quantize("int8")
    with pytest.raises(ValueError, match="must not be quantized"):
        export(policy, tmp_path)


@pytest.mark.parametrize("missing", ["tensorflow", "tensorflow_text"])
def test_missing_tensorflow_says_what_to_install(
    policy, tmp_path, monkeypatch, missing
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == missing else find(name),
    )
    with pytest.raises(ImportError, match=f"pip install {missing}`.*`export`"):
        export(policy, tmp_path)


def test_a_full_disk_is_seen_beforehand(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1)
    )
    with pytest.raises(OSError, match="bytes needed, 1 free"):
        export(policy, tmp_path)


def test_rewards_must_run_in_the_server(policy, tmp_path):
    with pytest.raises(TypeError, match="`reward` must be a `keras.Model`"):
        export(policy, tmp_path, best_of_n=2, reward=length_reward)
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="set `best_of_n`"):
        export(policy, tmp_path, reward=model)

    class Local(keras.Model):
        __module__ = "__main__"

    with pytest.raises(ValueError, match="must be defined in a module"):
        export(policy, tmp_path, best_of_n=2, reward=Local())


def test_what_was_not_exported_is_not_verified(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be the folder"):
        keras_bond.export.verify_saved_model(tmp_path)
