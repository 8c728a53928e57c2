"""Learning rates that are usual, too high, or too low to move anything."""

import warnings

import keras
from keras import ops

from keras_bond.training.whole_files import lora_factors

# docs/settings.md, "Learning rates", has the same numbers.
USUAL = {"all weights": 3e-6, "LoRA adapters": 1e-3}
# A constant rate of at least this value can damage a policy.
HIGH = {"all weights": 1e-4, "LoRA adapters": 5e-3}
# Below this value nothing moves in a run that somebody waits for. A float32
# weight of size 0.1 is rounded to multiples of 7e-9.
LOW = {"all weights": 1e-8, "LoRA adapters": 1e-5}
# What Keras's schedules call the highest of their rates.
PEAKS = ("warmup_target", "initial_learning_rate", "values")


def trained_part(model):
    """Returns `"LoRA adapters"` or `"all weights"`."""
    return "LoRA adapters" if any(lora_factors(model)) else "all weights"


def usual_rate(model):
    """Returns a float, a learning rate with which a model learns."""
    return USUAL[trained_part(model)]


def warn_learning_rate(optimizer, model, usual=None, what="the policy"):
    """Warns if a learning rate can damage a model, or moves nothing.

    LoRA adapters need a rate about 300 times that of all weights. A schedule is
    not too high, as it may warm up, and it is too low if its peak is.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        model: `keras.Model` with the trained weights.
        usual: float. The usual rate for all weights. Defaults to the paper's.
        what: str. What a high rate can damage, for the message.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    part = trained_part(model)
    rate = _peak(optimizer)
    if rate is None:
        return
    if part == "LoRA adapters" or usual is None:
        usual = USUAL[part]
    if rate < LOW[part]:
        warnings.warn(
            f"A learning rate of at most {rate:g} moves nothing: {part} learn "
            f"at about {usual:g}. Raise it. Received: learning_rate={rate:g}",
            stacklevel=3,
        )
    elif rate >= HIGH[part] and not _has_schedule(optimizer):
        warnings.warn(
            f"A constant learning rate of {rate:g} is far above the usual "
            f"{usual:g} of {part} and can damage {what} in its first steps. "
            "Warm it up, for instance with "
            f"`keras.optimizers.schedules.CosineDecay({rate / 10:g}, "
            f"decay_steps, warmup_target={rate:g}, warmup_steps=100)`, or "
            "lower it.",
            stacklevel=3,
        )


def is_rising(optimizer):
    """Whether a learning rate is still being warmed up."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not _has_schedule(optimizer):
        return False
    step = int(ops.convert_to_numpy(optimizer.iterations))
    now, then = (optimizer._learning_rate(s) for s in (step, step + 1))
    return bool(ops.convert_to_numpy(then) > ops.convert_to_numpy(now))


def _has_schedule(optimizer):
    schedule = keras.optimizers.schedules.LearningRateSchedule
    return isinstance(getattr(optimizer, "_learning_rate", None), schedule)


def _peak(optimizer):
    """The highest rate of an optimizer, `None` if its schedule hides it."""
    if not _has_schedule(optimizer):
        # A float32 of 1e-4 is a little below it.
        return float(f"{ops.convert_to_numpy(optimizer.learning_rate):.6g}")
    try:
        config = optimizer._learning_rate.get_config()
    except NotImplementedError:
        return None
    named = [config.get(name) for name in PEAKS]
    rates = [x for x in keras.tree.flatten(named) if isinstance(x, float)]
    return max(rates, default=None)
