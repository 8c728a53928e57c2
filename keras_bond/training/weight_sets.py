"""Several sets of values for the variables of one network.

Policy, anchor and reference share one network. A weight set holds values for
the policy's TRAINABLE variables only: with LoRA that is the adapters, and the
frozen backbone is never copied.
"""

import keras
from keras import ops

from keras_bond import backend


class WeightSet(keras.Layer):
    """A copy of the values of some variables.

    Kept in float32 whatever the dtype of the variables, and never trained. On
    many devices, every value lives where its variable does.

    Args:
        variables: list of `keras.Variable` whose present values are copied.
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
            # A plain assign of a JAX array shares its buffer, which the
            # training step then gives away: copy.
            value.assign(ops.copy(ops.cast(variable, "float32")))
        self.built = True

    def scope(self, policy):
        """Returns a context in which `policy` runs with these values.

        An inner `StatelessScope` hides an outer one, so EVERY variable is
        mapped: the frozen ones to the value that they have now.
        """
        mapping = [
            (variable, ops.cast(value, variable.dtype))
            for variable, value in zip(policy.trainable_variables, self.values)
        ]
        mapping += [(v, v.value) for v in policy.non_trainable_variables]
        return keras.StatelessScope(state_mapping=mapping)


class Anchor(WeightSet):
    """The weight set that follows the policy, by the rule of a callback.

    Args:
        variables: list of `keras.Variable`, the policy's trainable ones.
        name: str.
    """

    def __init__(self, variables, name="anchor"):
        super().__init__(variables, name)
        self.update_rate = self._number("update_rate", "float32", 0.0)
        self.every = self._number("every", "int32", 1)
        self.updates_seen = self._number("updates_seen", "int32", 0)

    def _number(self, name, dtype, value):
        initializer = keras.initializers.Constant(value)
        return self.add_weight(
            name=name,
            shape=(),
            dtype=dtype,
            trainable=False,
            initializer=initializer,
        )

    def set_rule(self, update_rate, every):
        """Sets how the anchor moves; see `keras_bond.callbacks.AnchorRule`."""
        self.update_rate.assign(update_rate)
        self.every.assign(every)

    def follow(self, variables, num_updates):
        """Moves the anchor if an optimiser update has happened since last time.

        `θ_anchor ← (1 - η) θ_anchor + η θ` (BOND, arXiv 2407.14622, eq. 18).

        Args:
            variables: list of `keras.Variable`, the policy's trainable ones.
            num_updates: int scalar tensor, `optimizer.iterations`: it stands
                still while gradients are being accumulated.

        Returns:
            bool scalar tensor: whether the optimiser made an update.
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
