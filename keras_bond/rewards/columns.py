"""Names that a column of the data must not have."""

from keras_bond.rewards.scores import RewardTypeError
from keras_bond.rewards.scores import RewardValueError

# What a run passes to reward functions, in addition to the columns.
LOG_NAMES = ("log_metric", "log_extra")
PASSED = ("prompts", "completions", "completion_ids", *LOG_NAMES)
# `prompt` would stand beside `prompts`. TRL passes its trainer's state.
RESERVED = (*PASSED, "prompt", "trainer_state")


def check_columns(names):
    """Raises an error if a column would replace what a run passes to rewards.

    Args:
        names: names of columns other than that of the prompts.

    Raises:
        TypeError: if a name is not a string.
        ValueError: if a name is one of `RESERVED`.
    """
    for name in names:
        if not isinstance(name, str):
            raise RewardTypeError(
                "Columns must have names that are strings, because reward "
                "functions receive them as keyword arguments. "
                f"Received: column {name!r} of type {type(name).__name__}"
            )
        if name in RESERVED:
            raise RewardValueError(
                f"A column must not be called `{name}`, which is what a run "
                "itself passes to reward functions: rename it, as in "
                f'data["reference_{name}"] = data.pop("{name}"), or leave it '
                f"out. Received: columns {sorted(map(str, names))}"
            )
