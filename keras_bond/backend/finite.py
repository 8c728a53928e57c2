"""Updates by finite gradients only, where variables are assigned to."""

import contextlib

from keras import ops


def all_finite(gradients):
    """Whether every value of some tensors is finite, a bool scalar tensor.

    Args:
        gradients: list of tensors, or `None` where there is none.
    """
    finite = [ops.all(ops.isfinite(g)) for g in gradients if g is not None]
    return ops.all(ops.stack(finite))


@contextlib.contextmanager
def only_good_updates(optimizer):
    """Lets an optimizer leave all as it is where a gradient is not finite.

    Args:
        optimizer: a `keras.optimizers.Optimizer`.

    Yields:
        list that will hold a bool scalar tensor: whether there was an update.
    """
    apply, good = optimizer.apply, []

    def apply_if_good(gradients, trainable_variables=None):
        gradients = list(gradients)
        good.append(all_finite(gradients))

        def update():
            # `apply` of some optimizers calls itself.
            del optimizer.apply
            apply(gradients, trainable_variables)

        ops.cond(good[0], update, lambda: None)

    optimizer.apply = apply_if_good
    try:
        yield good
    finally:
        optimizer.__dict__.pop("apply", None)


def keep_good(variables, values, is_good):
    """Gives variables their values back unless a step was good.

    Args:
        variables: list of `keras.Variable`.
        values: list of tensors, what they held before the step.
        is_good: bool scalar tensor.
    """
    for variable, old in zip(variables, values):
        variable.assign(ops.where(is_good, variable, old))
