"""Weight sets: the values of policy, anchor and reference for one network.

Policy, anchor and reference share one network. A weight set holds values for
the policy's TRAINABLE variables only. With LoRA these are the adapters, so the
frozen backbone is never copied.
"""

import contextlib

import keras
from keras import ops

from keras_bond import backend
from keras_bond.arguments import check_count
from keras_bond.arguments import is_number
from keras_bond.training import adapters


class WeightSet(keras.Layer):
    """A copy of the values of some variables.

    Values are float32 regardless of the dtype of the variables, and are not
    trainable. On several devices, each value has the layout of its variable.

    Args:
        variables: list of `keras.Variable` whose current values are copied.
        name: str.
    """

    def __init__(self, variables, name):
        super().__init__(name=name, dtype="float32")
        with keras.name_scope(name):
            self.values = [
                keras.Variable(
                    "zeros",
                    name=f"value_{i}",
                    shape=variable.shape,
                    dtype="float32",
                    trainable=False,
                    layout=backend.devices.layout_of(variable),
                )
                for i, variable in enumerate(variables)
            ]
        for value, variable in zip(self.values, variables):
            # On JAX a plain assign would share the buffer of the variable,
            # which the training step donates.
            value.assign(ops.copy(ops.cast(variable, "float32")))
        self.built = True

    def scope(self, policy):
        """Returns a context in which `policy` runs with these values.

        EVERY variable is mapped, the frozen ones to their current values,
        because an inner `StatelessScope` hides the mapping of an outer one.
        """
        mapping = [
            (variable, ops.cast(value, variable.dtype))
            for variable, value in zip(policy.trainable_variables, self.values)
        ]
        mapping += [(v, v.value) for v in policy.non_trainable_variables]
        return keras.StatelessScope(state_mapping=mapping)


class Anchor(WeightSet):
    """The weight set that follows the policy.

    Its update rule is given by two numbers, see `set_rule`, and is applied in
    the compiled step after each optimizer update. A callback could not apply
    it: `on_train_batch_end` is called once for several steps under
    `steps_per_execution`, and for every micro-batch under the optimizer's
    `gradient_accumulation_steps`.

    Args:
        variables: list of `keras.Variable`, the policy's trainable ones.
        name: str.
    """

    def __init__(self, variables, name="anchor"):
        super().__init__(variables, name)
        self.update_rate = _number(self, "update_rate", "float32", 0.0)
        self.every = _number(self, "every", "int32", 1)
        self.updates_seen = _number(self, "updates_seen", "int32", 0)

    def set_rule(self, update_rate, every):
        """Sets how the anchor moves.

        Args:
            update_rate: float in [0, 1]. Weight of the policy in the new
                anchor: 0 keeps the anchor fixed, 1 copies the policy. Denoted η
                in the paper.
            every: int, at least 1. Number of optimizer updates per anchor
                update.

        Raises:
            ValueError: if an argument is out of range.
        """
        if not is_number(update_rate, 0, 1):
            raise ValueError(
                "`update_rate` must be between 0 and 1. "
                f"Received: update_rate={update_rate!r}"
            )
        check_count("every", every, 1, bits=31)
        self.update_rate.assign(update_rate)
        self.every.assign(every)

    def follow(self, variables, num_updates):
        """Updates the anchor if there was an optimizer update since last time.

        `θ_anchor ← (1 - η) θ_anchor + η θ` (BOND, arXiv 2407.14622, eq. 18).

        Args:
            variables: list of `keras.Variable`, the policy's trainable ones.
            num_updates: int scalar tensor, `optimizer.iterations`. It does not
                change while gradients are accumulated or an update is skipped.

        Returns:
            bool scalar tensor. Whether there was an optimizer update.
        """
        num_updates = ops.cast(num_updates, "int32")
        updated = ops.not_equal(num_updates, self.updates_seen)
        due = ops.equal(ops.mod(num_updates, self.every), 0)
        rate = ops.where(
            ops.logical_and(updated, due), ops.copy(self.update_rate), 0.0
        )
        for value, variable in zip(self.values, variables):
            target = ops.cast(variable, "float32")
            value.assign((1.0 - rate) * value + rate * target)
        self.updates_seen.assign(num_updates)
        return updated


class WeightSets(keras.Layer):
    """The weight sets of a policy: anchor and, optionally, reference.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        has_reference: bool. Whether to keep the initial policy's values.

    Attributes:
        anchor: an `Anchor`.
        reference: a `WeightSet`, or `None`.
    """

    def __init__(self, policy, has_reference):
        super().__init__(name="weight_sets", dtype="float32")
        # A function hides the policy from Keras, which would track it twice.
        self._policy = lambda: policy
        self.anchor = Anchor(policy.trainable_variables)
        self.reference = None
        if has_reference:
            self.reference = WeightSet(policy.trainable_variables, "reference")
        self.built = True

    @property
    def others(self):
        """Names of the weight sets other than the policy's own."""
        return (
            ("anchor",) if self.reference is None else ("anchor", "reference")
        )

    @property
    def names(self):
        """Names of all weight sets."""
        return ("policy", *self.others)

    def using(self, name):
        """Returns a context in which the policy runs with a weight set.

        Args:
            name: str, one of `names`.
        """
        if name == "policy":
            return contextlib.nullcontext()
        return getattr(self, name).scope(self._policy())

    def can_share_a_pass(self):
        """Whether `of_rows` is possible, as with LoRA in most cases."""
        policy = self._policy()
        trained = {variable.name for variable in policy.trainable_variables}
        has_adapters = trained == set(adapters.FACTORS)
        return has_adapters and adapters.only_differ_in_adapters(policy)

    def of_rows(self, names):
        """Returns a callable with which each row has its own weight set.

        The callable takes an int32 tensor `(rows,)`, indices in `names`, and
        returns a context.

        Args:
            names: tuple of str, some of `names`.
        """
        policy = self._policy()
        values = {
            "policy": policy.trainable_variables,
            **{name: getattr(self, name).values for name in self.others},
        }
        sets = [values[name] for name in names]
        return adapters.AdaptersOfRows(policy, sets).using


def _number(layer, name, dtype, value):
    return layer.add_weight(
        name=name,
        shape=(),
        dtype=dtype,
        trainable=False,
        initializer=keras.initializers.Constant(value),
    )
