"""Export to TensorFlow Serving."""

import json
import os

import keras

from keras_bond.arguments import check_count
from keras_bond.export import checks
from keras_bond.export import processes
from keras_bond.export.greedy import record_completions
from keras_bond.files import move_folder
from keras_bond.files import temporary_folder
from keras_bond.rollouts import supported
from keras_bond.training import round_trip
from keras_bond.training import standardize
from keras_bond.version import __version__

PROMPTS = ("", "Hello", "Why is the sky blue?")


def export_saved_model(
    policy,
    path,
    *,
    max_prompt_length,
    max_new_tokens,
    version="auto",
    prompt_template="{prompt}",
    stop_token_ids="auto",
    best_of_n=None,
    reward=None,
    dtype="auto",
    prompts=PROMPTS,
    warmup=True,
    verify=True,
):
    """Exports a policy as a SavedModel for TensorFlow Serving.

    The export works on every backend. The model maps strings to strings: it
    includes the tokenizer, LoRA adapters are merged, and the weights are stored
    once. It runs in the standard server, because it has no XLA and no Python
    operations. One subprocess traces the model with Keras on TensorFlow, and a
    second one checks, with TensorFlow only, that it generates the same tokens
    as `policy.generate`. After that the model is moved to `path/version`.

    The model has these signatures, which all take batches:

    - `serving_default(prompts)`: `completions`, greedy.
    - `generate(prompts, temperature, seed)`: `completions`, drawn from the
      full distribution, or greedy for rows with temperature 0. A row depends
      only on its own prompt, temperature and seed.
    - `sample(prompts, temperature, seed)`, if `best_of_n` is given: `best_of_n`
      `completions` per prompt and their `log_probs` (at temperature 1); with a
      `reward` also their `rewards` and the `best` completion.
    - `score(prompts, completions)`: `log_probs`, the log-probability of each
      completion as tokenized by the tokenizer, in nats, and `end_log_probs`,
      the log-probability that generation stops after it.
    - `generate_tokens` and `score_tokens`: the same for token ids.

    Tokenizers of SentencePiece and byte-level byte-pair tokenizers run in the
    model. For a tokenizer with parts that a graph cannot compute, the model has
    the last two signatures only, and a warning says so.

    Args:
        policy: `keras_hub.models.CausalLM`, text only.
        path: str. Folder of the model; its last part is the model's name.
        max_prompt_length: int. Maximum number of tokens in a prompt, including
            start token and template. The server answers longer prompts with an
            error.
        max_new_tokens: int. Maximum number of tokens in a completion.
        version: `"auto"` for the next number, or an int. An existing version
            is never overwritten.
        prompt_template: str. Text that contains `{prompt}`, which is replaced
            by the prompt. Defaults to the prompt only.
        stop_token_ids: `"auto"` or sequence of int. Tokens that end a
            completion. Defaults to those of the last trainer of this policy
            in this process; without one, to the end tokens of the tokenizer
            and that of a turn in its chat format.
        best_of_n: int. Completions per prompt in `sample`.
        reward: `keras.Model` that maps `{"token_ids", "padding_mask"}` to one
            score per row, on every backend. It becomes part of the served
            model.
        dtype: `"auto"` or str. Precision to serve in. Defaults to that of the
            policy.
        prompts: list of str. Prompts whose greedy completions are recorded for
            the check and the warm-up requests. Those that are too long are
            ignored.
        warmup: bool. Whether to add warm-up requests, which the server runs
            before it reports that it is ready. Without them the first request
            is slow.
        verify: bool. Whether to check the model before it is moved to its
            path.

    Returns:
        str, the folder of the version.

    Raises:
        TypeError, ValueError: if `policy` cannot be served or an argument is
            out of range, before anything is written; ValueError if the model
            does not pass its checks.
        ImportError: without TensorFlow or tensorflow-text (extra `export`).
        FileExistsError: if the version exists.
        OSError: if the disk is too small.
        RuntimeError: if a subprocess fails, with the end of its error output.

    Example:

    ```python
    keras_bond.export.export_saved_model(
        bond.policy, "served/my_policy", max_prompt_length=256,
        max_new_tokens=256,
    )
    ```
    """
    path = os.path.abspath(os.fspath(path))
    supported.check_causal_lm(policy)
    checks.check_servable(policy)
    checks.check_tensorflow()
    check_count("max_prompt_length", max_prompt_length, 1)
    check_count("max_new_tokens", max_new_tokens, 1)
    if best_of_n is not None:
        check_count("best_of_n", best_of_n, 2)
    checks.check_template(prompt_template)
    tokenizer, stops = standardize.text_of(policy)
    job = {
        "name": os.path.basename(path),
        "serves_text": checks.serves_text(policy, best_of_n),
        "policy": type(policy).__name__,
        "keras_bond": __version__,
        "dtype": checks.resolve_dtype(dtype, policy),
        "max_prompt_length": max_prompt_length,
        "max_new_tokens": max_new_tokens,
        "prompt_template": prompt_template,
        "start_token_ids": tokenizer.start,
        "start_text": tokenizer.start_text,
        "start_repeats": tokenizer.start_repeats,
        "stop_token_ids": checks.resolve_stops(
            stop_token_ids, tokenizer, stops
        ),
        "special_token_ids": sorted(tokenizer.special_token_ids()),
        "best_of_n": best_of_n,
        "reward_modules": checks.reward_modules(reward, best_of_n),
        "warmup": warmup,
    }
    job["examples"] = _examples(tokenizer, job, prompts)
    version = str(checks.resolve_version(path, version))
    models = [policy] if reward is None else [policy, reward]
    variables = [v for model in models for v in model.variables]
    # One copy for the process that traces the model, one for the server.
    served = keras.DTypePolicy(job["dtype"]).variable_dtype
    checks.check_disk(variables, path, None, served)
    round_trip.check(policy)
    return _write(policy, reward, job, os.path.join(path, version), verify)


def verify_saved_model(path):
    """Checks an exported model in a process with TensorFlow only.

    It checks that the standard server has all operations of the model, that
    greedy completions are those of the policy at the time of export, and that
    the outputs of the warm-up requests are finite.

    Args:
        path: str. The folder of a version, such as `"served/my_policy/1"`.

    Returns:
        dict of what was checked: `operations`, `examples` and
        `warmup_requests` are counts, `signatures` is a list of names.

    Raises:
        ValueError: if the model does not pass.
        ImportError: without TensorFlow or tensorflow-text (extra `export`).
        RuntimeError: if the process fails, with the end of its error output.

    Example:

    ```python
    report = keras_bond.export.verify_saved_model("served/my_policy/1")
    assert "serving_default" in report["signatures"]
    ```
    """
    checks.check_tensorflow()
    checks.check_exported(os.fspath(path))
    return processes.verify(os.fspath(path))


def _examples(tokenizer, job, prompts):
    """The prompts that fit, as text and as token ids."""
    limit = job["max_prompt_length"]
    checks.check_lengths(limit, _encode(tokenizer, job, [""])[0])
    prompts = list(prompts)
    examples = [
        {"prompt": prompt, "prompt_ids": ids}
        for prompt, ids in zip(prompts, _encode(tokenizer, job, prompts))
        # Without a start token, nothing follows an empty prompt.
        if 1 <= len(ids) <= limit
    ]
    checks.check_examples(examples, prompts, limit)
    return examples


def _encode(tokenizer, job, prompts):
    template = job["prompt_template"]
    texts = [template.replace("{prompt}", prompt) for prompt in prompts]
    return tokenizer.encode(texts)


def _write(policy, reward, job, path, verify):
    if job["dtype"] == "float32" == policy.backbone.dtype_policy.name:
        # In lower precision the backends round differently. The tracing process
        # then records the completions, with Keras on TensorFlow.
        record_completions(policy, job)
    with temporary_folder(path) as folder:
        preset = os.path.join(folder, "preset")
        # Saving the parts separately merges adapters and omits the compile
        # config.
        with round_trip.complete(policy):
            policy.backbone.save_to_preset(preset)
            policy.preprocessor.save_to_preset(preset)
        if reward is not None:
            reward.save(os.path.join(folder, "reward.keras"))
        with open(os.path.join(folder, "job.json"), "w") as file:
            json.dump(job, file)
        processes.trace(folder)
        if verify:
            processes.verify(os.path.join(folder, "model"))
        move_folder(os.path.join(folder, "model"), path)
    return path
