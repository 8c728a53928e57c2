"""A trained policy as a model that TensorFlow Serving runs."""

import json
import os

from keras_bond.arguments import check_count
from keras_bond.data.tokenizer import TextTokenizer
from keras_bond.export import checks
from keras_bond.export import processes
from keras_bond.export.greedy import record_completions
from keras_bond.files import temporary_folder
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
    """Writes a policy as a SavedModel for TensorFlow Serving.

    From every backend, strings in and strings out: the tokenizer is inside,
    LoRA adapters are merged, and the weights are stored once. The model holds
    no XLA and no Python operation, so the stock server runs it. Keras on
    TensorFlow traces it in a process of its own, and a second process checks
    with TensorFlow alone that it answers as `policy.generate` does, token for
    token. Only then it appears, as `path/version`.

    Its signatures, each over a batch:

    - `serving_default(prompts)`: `completions`, greedy.
    - `generate(prompts, temperature, seed)`: `completions`, drawn from the
      full distribution; greedy where the temperature is 0. A row depends on
      its own prompt, temperature and seed only.
    - `sample(prompts, temperature, seed)`, if `best_of_n` is given: that many
      `completions` of each prompt and their `log_probs` (at temperature 1);
      with a `reward` their `rewards`, and the `best` of them.
    - `score(prompts, completions)`: `log_probs`, the log-probability of each
      completion as the tokenizer splits it, in nats, and `end_log_probs`, that
      of stopping right behind it.
    - `generate_tokens` and `score_tokens`: the same on token ids.

    Args:
        policy: `keras_hub.models.CausalLM` with a SentencePiece tokenizer,
            such as Gemma and Gemma 3, text only.
        path: str. Folder of the model; its last part is the model's name.
        max_prompt_length: int. Most tokens of a prompt, start token and
            template included. A longer one is answered with an error.
        max_new_tokens: int. Most tokens of a completion.
        version: `"auto"` for the next number, or an int. A version that
            exists is never written over.
        prompt_template: str. What `{prompt}` stands in. Defaults to the prompt
            by itself.
        stop_token_ids: `"auto"` or sequence of int. Tokens that end a
            completion; by default the end token, and Gemma's end of turn where
            the vocabulary has it.
        best_of_n: int. Completions of a prompt in `sample`.
        reward: `keras.Model` that maps `{"token_ids", "padding_mask"}` to one
            score a row, on every backend; it becomes part of the served model.
        dtype: `"auto"` or str, the precision to serve in. Defaults to that of
            the policy.
        prompts: list of str. Prompts whose greedy completions are recorded,
            to check and to warm up with. Those that are too long are left out.
        warmup: bool. Whether to add requests that the server answers before
            it says that it is ready; without them the first user waits.
        verify: bool. Whether to check the model before it appears.

    Returns:
        str, the folder of the version.

    Raises:
        TypeError, ValueError: if `policy` cannot be served or an argument is
            out of range, before anything is written; ValueError if the model
            does not pass its checks.
        ImportError: without TensorFlow or tensorflow-text.
        FileExistsError: if the version exists.
        OSError: if the disk is too small.
        RuntimeError: with the last words of a process that failed.

    Example:

    ```python
    keras_bond.export.export_saved_model(
        bond.policy, "served/my_policy", max_prompt_length=256,
        max_new_tokens=256,
    )
    ```
    """
    path = os.path.abspath(os.fspath(path))
    checks.check_policy(policy)
    checks.check_servable(policy)
    checks.check_tensorflow()
    check_count("max_prompt_length", max_prompt_length, 1)
    check_count("max_new_tokens", max_new_tokens, 1)
    if best_of_n is not None:
        check_count("best_of_n", best_of_n, 2)
    checks.check_template(prompt_template)
    codec = TextTokenizer(policy.preprocessor)
    job = {
        "name": os.path.basename(path),
        "policy": type(policy).__name__,
        "keras_bond": __version__,
        "dtype": checks.resolve_dtype(dtype, policy),
        "max_prompt_length": max_prompt_length,
        "max_new_tokens": max_new_tokens,
        "prompt_template": prompt_template,
        "start_token_ids": codec.start,
        "stop_token_ids": checks.resolve_stops(stop_token_ids, codec),
        "special_token_ids": sorted(codec.special_token_ids()),
        "best_of_n": best_of_n,
        "reward_modules": checks.reward_modules(reward, best_of_n),
        "warmup": warmup,
    }
    job["examples"] = _examples(codec, job, prompts)
    version = str(checks.resolve_version(path, version))
    models = [policy] if reward is None else [policy, reward]
    variables = [v for model in models for v in model.variables]
    checks.check_disk(variables, path, job["dtype"])
    return _write(policy, reward, job, os.path.join(path, version), verify)


def verify_saved_model(path):
    """Checks an exported model again, in a process with TensorFlow alone.

    That its operations are those of a stock server, that it answers greedily
    as the policy did when it was exported, and that its warm-up requests are
    answered with finite numbers.

    Args:
        path: str. The folder of a version, such as `"served/my_policy/1"`.

    Returns:
        dict of what was checked: `operations`, `examples` and
        `warmup_requests` are their numbers, `signatures` a list of names.

    Raises:
        ValueError: if the model does not pass.
        ImportError: without TensorFlow or tensorflow-text.
        RuntimeError: with the last words of the process, if it fails.

    Example:

    ```python
    report = keras_bond.export.verify_saved_model("served/my_policy/1")
    assert "serving_default" in report["signatures"]
    ```
    """
    checks.check_tensorflow()
    checks.check_exported(os.fspath(path))
    return processes.verify(os.fspath(path))


def _examples(codec, job, prompts):
    """The prompts that fit, as text and as token ids."""
    limit = job["max_prompt_length"]
    checks.check_lengths(limit, _encode(codec, job, [""])[0])
    prompts = list(prompts)
    examples = [
        {"prompt": prompt, "prompt_ids": ids}
        for prompt, ids in zip(prompts, _encode(codec, job, prompts))
        if len(ids) <= limit
    ]
    checks.check_examples(examples, prompts, limit)
    return examples


def _encode(codec, job, prompts):
    template = job["prompt_template"]
    return codec.encode([template.replace("{prompt}", p) for p in prompts])


def _write(policy, reward, job, path, verify):
    if job["dtype"] == "float32" == policy.backbone.dtype_policy.name:
        # In lower precision every backend rounds in its own way; then the
        # tracing process asks Keras on TensorFlow.
        record_completions(policy, job)
    with temporary_folder(path) as folder:
        preset = os.path.join(folder, "preset")
        # In parts, which merges adapters and leaves the compilation out.
        policy.backbone.save_to_preset(preset)
        policy.preprocessor.save_to_preset(preset)
        if reward is not None:
            reward.save(os.path.join(folder, "reward.keras"))
        with open(os.path.join(folder, "job.json"), "w") as file:
            json.dump(job, file)
        processes.trace(folder)
        if verify:
            processes.verify(os.path.join(folder, "model"))
        os.rename(os.path.join(folder, "model"), path)
    return path
