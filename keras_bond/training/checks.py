"""Checks for mistakes that would silently ruin training."""

import warnings

import keras
from keras import ops

from keras_bond.arguments import check_count
from keras_bond.arguments import is_count
from keras_bond.arguments import is_number
from keras_bond.backend import parts
from keras_bond.rollouts import network
from keras_bond.rollouts import supported
from keras_bond.training.learning_rates import usual_rate
from keras_bond.training.whole_files import lora_factors


def check_policy(policy):
    """Raises an error if a policy cannot be trained.

    Raises:
        TypeError: if `policy` is not a KerasHub causal language model.
        ValueError: if its family is not supported, or nothing is trainable.
    """
    supported.check_causal_lm(policy)
    if not policy.trainable_variables:
        raise ValueError(
            "`policy` must have something to train: set "
            "`policy.trainable = True`, or call "
            "`policy.backbone.enable_lora(rank)`, with `target_layer_names` "
            "if its layers have other names. Received: a policy with 0 "
            f"trainable of {len(policy.variables)} variables"
        )


def check_parts(trainer, batch_size):
    """Raises an error if the parts of a step do not make up its batch.

    Raises:
        ValueError: naming the argument of `compile`.
    """
    size = trainer.rollout_batch_size or batch_size
    parts.check_divides("rollout_batch_size", size, batch_size)
    if size < batch_size:
        parts.check_shards("rollout_batch_size", size, size)
    steps = trainer.gradient_accumulation_steps
    parts.check_divides("gradient_accumulation_steps", steps, batch_size)
    if steps > 1:
        rows = batch_size // steps
        parts.check_shards("gradient_accumulation_steps", steps, rows)


def skipped_error(skipped, most):
    """The error that ends a run after too many skipped steps in a row."""
    return FloatingPointError(
        "Loss and gradients must be finite: lower the learning rate, warm it "
        "up, or find what overflows with `compile(run_eagerly=True)`; in "
        "float32, `sampling/log_prob_difference` must be at most 0.1, too. The "
        "weights are those of the last good step. Received: "
        f"{skipped} skipped steps in a row, max_skipped_steps={most}"
    )


def check_backbone(backbone):
    """Raises an error if an object is not a KerasHub backbone.

    Raises:
        TypeError: if it does not map tokens to hidden states.
        ValueError: if it has inputs that text does not give.
    """
    is_network = isinstance(getattr(backbone, "input", None), (dict, list))
    specs = network.input_specs(backbone) if is_network else {}
    if "token_ids" not in specs or not hasattr(backbone.output, "shape"):
        raise TypeError(
            "`backbone` must be a KerasHub backbone, or a model that has one, "
            "such as `keras_hub.models.Gemma3CausalLM`. Received: "
            f"backbone={backbone!r} of type {type(backbone).__name__}"
        )
    supported.check_inputs("backbone", backbone)


def check_lengths(policy, max_prompt_length, max_completion_length):
    """Raises an error if the lengths do not fit the policy.

    Raises:
        ValueError: naming the length that is out of range.
    """
    for name, value in (
        ("max_prompt_length", max_prompt_length),
        ("max_completion_length", max_completion_length),
    ):
        if not is_count(value, 1):
            raise ValueError(
                f"`{name}` must be a positive number of tokens. "
                f"Received: {name}={value!r}"
            )
    longest = getattr(policy.backbone, "max_sequence_length", None)
    total = max_prompt_length + max_completion_length
    if longest is not None and total > longest:
        raise ValueError(
            "`max_prompt_length + max_completion_length` must not exceed the "
            f"{longest} positions that the policy's backbone has. Received: "
            f"{max_prompt_length} + {max_completion_length} = {total}"
        )


def check_temperature(temperature):
    """Raises an error if a temperature does not allow sampling.

    Raises:
        ValueError: if it is not a finite number above 0.
    """
    if not is_number(temperature, 0) or temperature == 0:
        raise ValueError(
            "`temperature` must be a finite number above 0: BOND needs "
            "samples of the policy, not its most likely answer. "
            f"Received: temperature={temperature!r}"
        )


def check_jeffreys_beta(jeffreys_beta):
    """Raises an error if `jeffreys_beta` is not in [0, 1].

    Raises:
        ValueError: naming the weight.
    """
    if not is_number(jeffreys_beta, 0, 1):
        raise ValueError(
            "`jeffreys_beta` must be between 0 (forward KL only) and 1 "
            f"(backward KL only). Received: jeffreys_beta={jeffreys_beta!r}"
        )


def check_policy_samples(num_policy_samples, **weights):
    """Raises an error if terms that need samples of the policy have none.

    Args:
        num_policy_samples: int.
        **weights: float. Weights of these terms, by the names of the arguments.

    Raises:
        ValueError: naming the weights that are above 0.
    """
    needed = [name for name, weight in weights.items() if weight > 0]
    check_count("num_policy_samples", num_policy_samples, 0)
    if needed and not num_policy_samples:
        raise ValueError(
            "`num_policy_samples` must be at least 1, unless only the forward "
            "KL is descended, which needs samples of the anchor alone: pass "
            f"{' and '.join(f'{name}=0' for name in needed)} too. Received: "
            f"num_policy_samples=0, {needed[0]}={weights[needed[0]]}"
        )


def check_strength(name, value):
    """Raises an error if a value is not a finite number of at least 0.

    Raises:
        ValueError: naming the argument.
    """
    if not is_number(value, 0):
        raise ValueError(
            f"`{name}` must be a finite number of at least 0. "
            f"Received: {name}={value!r}"
        )


def check_share(name, value):
    """Raises an error if a value is not a number in [0, 1].

    Raises:
        ValueError: naming the argument.
    """
    if not is_number(value, 0, 1):
        raise ValueError(
            f"`{name}` must be between 0 and 1. Received: {name}={value!r}"
        )


def check_one_of(name, value, allowed):
    """Raises an error if a value is not among `allowed`.

    Raises:
        ValueError: listing what is allowed.
    """
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {list(allowed)}. "
            f"Received: {name}={value!r}"
        )


def check_reward(policy, reward, tokenizer):
    """Raises an error if a reward cannot be used with a policy.

    Raises:
        ValueError: if the reward needs text and the policy has no tokenizer, or
            if they share a trainable variable.
    """
    if reward.needs_text and tokenizer is None:
        raise ValueError(
            "A reward function reads text, so the policy needs a tokenizer: "
            "build it with a preprocessor, or score token ids with a Keras "
            f"model. Received: reward=`{reward.name}`, a policy without a "
            "preprocessor"
        )
    trained = {id(v): v.path for v in policy.trainable_variables}
    shared = [trained[id(v)] for v in reward.variables() if id(v) in trained]
    if shared:
        raise ValueError(
            "The reward must not share trainable variables with the policy: "
            "it would change at every step. Build it on a copy of the "
            f"backbone. Received: {len(shared)} shared variables, the first "
            f"of them {shared[0]!r}"
        )


def check_optimizer(optimizer, variables):
    """Raises an error if an optimizer cannot update the policy's variables.

    Adam never changes a bfloat16 weight, at any learning rate, because its
    `beta_2` of 0.999 rounds to 1. The optimizer is therefore tried on one
    variable of each low-precision dtype.

    Raises:
        ValueError: naming the dtype and how to fix it.
    """
    for dtype in sorted({v.dtype for v in variables} - {"float32", "float64"}):
        if not _moves(optimizer, dtype):
            raise ValueError(
                f"`{type(optimizer).__name__}` cannot move {dtype} variables: "
                "its updates are rounded away, and training would change "
                'nothing. Load the policy with dtype="mixed_bfloat16", or call '
                "`policy.backbone.enable_lora(rank)`, whose adapters are "
                f"float32. Received: trainable variables of dtype {dtype}"
            )


def _moves(optimizer, dtype):
    config = {**optimizer.get_config(), "learning_rate": 0.1}
    config.pop("gradient_accumulation_steps", None)
    probe = type(optimizer).from_config(config)
    variable = keras.Variable(ops.ones((4,)), dtype=dtype)
    probe.build([variable])
    for _ in range(3):
        probe.apply([ops.ones((4,), dtype)], [variable])
    return not bool(ops.all(ops.equal(variable, ops.ones((4,), dtype))))


def check_compiled(model):
    """Raises an error if `compile` was not called.

    Raises:
        ValueError: saying how to call it.
    """
    if not model.compiled:
        raise ValueError(
            "`compile` must be called before `fit` and `evaluate`: "
            "`model.compile(keras.optimizers.Adam("
            f"{usual_rate(model):g}))`. Received: a "
            f"{type(model).__name__} without an optimizer"
        )


def warn_weight_decay(optimizer, policy):
    """Warns if weight decay pulls trained weights away from the reference.

    Decay pulls weights to 0. For LoRA adapters 0 is the reference policy.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        policy: a `keras_hub.models.CausalLM`.
    """
    if any(lora_factors(policy)):
        return
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    # Muon has two: its Adam, for some of the variables, has one of its own.
    names = ("weight_decay", "adam_weight_decay")
    decays = {name: getattr(optimizer, name, None) for name in names}
    found = [f"{name}={value:g}" for name, value in decays.items() if value]
    if found:
        warnings.warn(
            "Weight decay pulls the weights of the policy to 0, away from the "
            "reference policy, and spends KL on it: turn it off with "
            f"`keras.optimizers.{type(optimizer).__name__}(weight_decay=0.0, "
            "...)`, or train LoRA adapters, for which 0 is the reference. "
            f"Received: {', '.join(found)}",
            stacklevel=3,
        )
