"""JAX: every stage is one `jax.jit`, its state threaded explicitly."""

import contextlib
import functools

import jax
import keras

from keras_bond.backend import many_devices
from keras_bond.backend.finite import all_finite
from keras_bond.backend.host import host_memory


def rematerialize(function, variables):
    """Lets the backward pass compute a function again, not remember it.

    Args:
        function: callable of tensors.
        variables: list of `keras.Variable`, all that it reads.
    """
    del variables
    return jax.checkpoint(function)


def map_parts(function, tensors, variables):
    """Applies a function to one part after the other, rematerialized.

    Args:
        function: callable of one part, a structure of tensors without their
            first axis, that returns a structure of tensors.
        tensors: nested structure of tensors `(parts, ...)`.
        variables: list of `keras.Variable`, all that it reads.

    Returns:
        structure of tensors `(parts, ...)`.
    """
    return jax.lax.map(rematerialize(function, variables), tensors)


def prefers_flat_products():
    """Whether gradients of products over two axes are slow: XLA on CPUs."""
    return jax.default_backend() == "cpu"


def compile_forward(function, variables, static_argnums=()):
    """Compiles a function of tensors that reads `variables`, updates none.

    Arguments numbered in `static_argnums` are hashable Python values.
    """
    shifted = tuple(number + 1 for number in static_argnums)

    @functools.partial(jax.jit, static_argnums=shifted)
    def forward(values, *arguments):
        mapping = list(zip(variables, values))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*arguments)

    return lambda *arguments: forward([v.value for v in variables], *arguments)


def device_memory():
    """Returns the name of the device that computes, and its memory.

    Returns:
        `(name, bytes)`: str, and int, or `None` where it is not known.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_memory()
    # The part of it that JAX may use.
    stats = device.memory_stats() or {}
    return device.device_kind, stats.get("bytes_limit")


def foreign_strategy():
    """Name of what distributes this process beside Keras: nothing in JAX."""
    return None


class StagedTrainer:
    """Runs a step as rollout, rewards and learning, each compiled by itself.

    Between the compiled stages the step is ordinary Python: a reward may do
    what it likes, its exceptions surface as themselves, and the weights are
    untouched when one does.
    """

    def train_step(self, state, data):
        batch = self._collect(state, data, training=True)
        return self._state_stage("learn", self._learn, state)(state, batch)

    def test_step(self, state, data):
        batch = self._collect(state, data, training=False)
        return self._state_stage("test", self._test, state)(state, batch)

    def _collect(self, state, data, training):
        def run(name, function, *arguments):
            stage = self._stage(name, self._stateless(function))
            return stage(state[0], state[1], *arguments)

        try:
            batch = self.collect(run, data[0], training)
            if training:
                self.check_skipped(self._skipped_in_a_row(state))
            return batch
        except BaseException:
            self._keep_state(state)
            raise

    def _skipped_in_a_row(self, state):
        sought = self.progress.skipped_in_a_row
        frozen = zip(self.non_trainable_variables, state[1])
        return next(value for variable, value in frozen if variable is sought)

    def _keep_state(self, state):
        """Hands the live values back to the variables that Keras emptied."""
        names = ["trainable", "non_trainable", "optimizer", "metrics"]
        if len(state) == 3:
            names.remove("optimizer")
        self._jax_state = {
            f"{name}_variables": values for name, values in zip(names, state)
        }
        self._jax_state_synced = False
        self.jax_state_sync()

    def _state_stage(self, name, function, state):
        """A stage that takes the state, gives it away and returns it anew."""
        placed = None
        is_new = name not in self._stages
        if is_new and keras.distribution.distribution() is not None:
            # Every variable stays where it is.
            places = jax.tree.map(lambda value: value.sharding, state)
            placed = (None, places)
        return self._stage(
            name, function, donate_argnums=0, out_shardings=placed
        )

    def _stage(self, name, function, **options):
        if name not in self._stages:
            if self._compiles_stages:
                function = jax.jit(function, **options)
            self._stages[name] = function
        return self._stages[name]

    def _stateless(self, function):
        def stateless(trainable, frozen, *arguments):
            mapping = [
                *zip(self.trainable_variables, trainable),
                *zip(self.non_trainable_variables, frozen),
            ]
            with keras.StatelessScope(state_mapping=mapping):
                return jax.tree.map(many_devices.spread, function(*arguments))

        return stateless

    def _learn(self, state, batch):
        batch = self.targets(batch)
        with keras.StatelessScope(state_mapping=self._mapping(state)):
            before = self.watched_weights()
        old_metrics = state[3]
        with _only_good_updates(self.optimizer) as good:
            _, state = super().train_step(state, (batch,))
        is_good = good[0]
        state = (*state[:3], _choose(is_good, state[3], old_metrics))
        with keras.StatelessScope(state_mapping=self._mapping(state)) as scope:
            logs = self.after_update(batch, before, is_good)
        trainable, frozen, optimizer, metrics = state
        frozen = _current(scope, self.non_trainable_variables, frozen)
        metrics = _current(scope, self.metrics_variables, metrics)
        return logs, (trainable, frozen, optimizer, metrics)

    def _test(self, state, batch):
        return super().test_step(state, (self.targets(batch),))

    def _mapping(self, state):
        trainable, frozen, optimizer, metrics = state
        return [
            *zip(self.trainable_variables, trainable),
            *zip(self.non_trainable_variables, frozen),
            *zip(self.optimizer.variables, optimizer),
            *zip(self.metrics_variables, metrics),
        ]


@contextlib.contextmanager
def _only_good_updates(optimizer):
    """Lets an optimizer leave all as it is where a gradient is not finite.

    Yields:
        list that will hold a bool scalar tensor: whether there was an update.
    """
    apply, good = optimizer.stateless_apply, []

    def stateless_apply(optimizer_variables, gradients, trainable):
        good.append(all_finite(gradients))
        old = (trainable, optimizer_variables)
        new = apply(optimizer_variables, gradients, trainable)
        return tuple(_choose(good[0], x, y) for x, y in zip(new, old))

    optimizer.stateless_apply = stateless_apply
    try:
        yield good
    finally:
        del optimizer.stateless_apply


def _choose(is_new, new, old):
    return [jax.numpy.where(is_new, x, y) for x, y in zip(new, old)]


def _current(scope, variables, values):
    changed = [scope.get_current_value(variable) for variable in variables]
    return [old if new is None else new for new, old in zip(changed, values)]
