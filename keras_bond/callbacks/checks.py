"""What callbacks ask of the model that they are given to, and of each other."""

import keras


def as_list(callbacks):
    """Returns what a user passes as `callbacks` as a list.

    Args:
        callbacks: list of `keras.callbacks.Callback`, one of them, a
            `keras.callbacks.CallbackList`, or `None`.

    Raises:
        TypeError: if one of them is no callback.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    callbacks = keras.tree.flatten([] if callbacks is None else callbacks)
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(
                "`callbacks` must be a list of `keras.callbacks.Callback`. "
                f"Received: {callback!r} of type {type(callback).__name__}"
            )
    return callbacks


def check_draws(callback, model):
    """Refuses a model that draws and scores no completions.

    Raises:
        ValueError: naming the callback.
    """
    if not hasattr(model, "draw_scored"):
        raise ValueError(
            f"`{type(callback).__name__}` looks at the completions of a "
            "trainer such as `keras_bond.JBond`: pass it to that model's "
            f"`fit`. Received: a model of type {type(model).__name__}"
        )


def num_updates(model):
    """Optimizer updates of a model so far, int."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))
