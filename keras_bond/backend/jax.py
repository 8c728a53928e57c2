"""JAX backend: each stage is one `jax.jit` function with explicit state."""

import contextlib
import functools

import jax
import keras

from keras_bond.backend import many_devices
from keras_bond.backend.host import host_memory
from keras_bond.backend.step import Step
from keras_bond.backend.step import global_norm


def rematerialize(function, variables):
    """Makes the backward pass recompute a function instead of storing it.

    Args:
        function: callable of tensors.
        variables: list of `keras.Variable` that the function reads.
    """
    del variables
    return jax.checkpoint(function)


def map_parts(function, tensors, variables, num_used=None):
    """Applies a function to one part after another, rematerialized.

    Args:
        function: callable that takes one part, a structure of tensors without
            the first axis, and returns a structure of tensors.
        tensors: nested structure of tensors `(parts, ...)`.
        variables: list of `keras.Variable` that the function reads.
        num_used: int scalar tensor, or `None`. Only so many parts are computed,
            and the others are zeros.

    Returns:
        structure of tensors `(parts, ...)`.
    """
    if num_used is None:
        return jax.lax.map(rematerialize(function, variables), tensors)
    return _map_first(function, tensors, variables, num_used)


def _map_first(function, tensors, variables, num_used):
    """`map_parts` whose number of parts is known when the program runs.

    JAX does not differentiate such a loop, so the gradient has one of its own.
    `lax.map` of `lax.cond` would be shorter, but holds a copy of the embedding:
    517 MiB in place of 197 for learning with LoRA and 262,144 entries.
    """
    trained = [v for v in variables if v.trainable]
    frozen = [(v, v.value) for v in variables if not v.trainable]
    leaves, structure = jax.tree.flatten(tensors)
    is_float = [
        jax.numpy.issubdtype(x.dtype, jax.numpy.floating) for x in leaves
    ]
    fixed = [x for x, yes in zip(leaves, is_float) if not yes]

    def apply(values, floats, fixed):
        chosen = {True: iter(floats), False: iter(fixed)}
        part = structure.unflatten([next(chosen[yes]) for yes in is_float])
        mapping = [*zip(trained, values), *frozen]
        with keras.StatelessScope(state_mapping=mapping):
            return function(part)

    def part_of(tensors, i):
        return [x[i] for x in tensors]

    def put(whole, i, part):
        return jax.tree.map(lambda x, y: x.at[i].set(y), whole, part)

    @jax.custom_vjp
    def mapped(values, floats, fixed, num_used):
        def one(i, outputs):
            part = apply(values, part_of(floats, i), part_of(fixed, i))
            return put(outputs, i, part)

        first = part_of(floats, 0), part_of(fixed, 0)
        outputs = jax.tree.map(
            lambda x: jax.numpy.zeros((len(leaves[0]), *x.shape), x.dtype),
            jax.eval_shape(apply, values, *first),
        )
        return jax.lax.fori_loop(0, num_used, one, outputs)

    def forward(*arguments):
        return mapped(*arguments), arguments

    def backward(arguments, upstream):
        values, floats, fixed, num_used = arguments

        def one(i, sums):
            _, pull_back = jax.vjp(
                lambda values, part: apply(values, part, part_of(fixed, i)),
                values,
                part_of(floats, i),
            )
            of_part = jax.tree.map(lambda x: x[i], upstream)
            of_values, of_floats = pull_back(of_part)
            added = jax.tree.map(lambda x, y: x + y, sums[0], of_values)
            return added, put(sums[1], i, of_floats)

        zeros = jax.tree.map(jax.numpy.zeros_like, (values, floats))
        return *jax.lax.fori_loop(0, num_used, one, zeros), None, None

    mapped.defvjp(forward, backward)
    values = [v.value for v in trained]
    floats = [x for x, yes in zip(leaves, is_float) if yes]
    return mapped(values, floats, fixed, num_used)


def prefers_flat_products():
    """Whether gradients of products over two axes are slow, as on CPUs."""
    return jax.default_backend() == "cpu"


def compile_forward(function, variables, static_argnums=()):
    """Compiles a function that reads `variables` but does not update them.

    Arguments listed in `static_argnums` are hashable Python values, all others
    are tensors.
    """
    shifted = tuple(number + 1 for number in static_argnums)

    @functools.partial(jax.jit, static_argnums=shifted)
    def forward(values, *arguments):
        mapping = list(zip(variables, values))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*arguments)

    return lambda *arguments: forward([v.value for v in variables], *arguments)


def device_memory():
    """Returns the name and the memory of the device.

    Returns:
        `(name, bytes)`: str, and int or `None` if it is unknown.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_memory()
    # The memory that JAX may use, which is less than the device has.
    stats = device.memory_stats() or {}
    return device.device_kind, stats.get("bytes_limit")


def foreign_strategy():
    """Returns `None`: JAX has no distribution strategy of its own."""
    return None


class StagedTrainer(Step):
    """Runs a training step as Python that calls compiled stages.

    A reward is ordinary Python, and its exceptions are raised unchanged. Keras
    removes the values from the variables before the first step of an epoch
    (`_purge_model_variables` in keras/src/backend/jax/trainer.py). This class
    puts them back before a step collects its batch, so that code on the host
    can use the model as usual. Only the learning stage, to which the buffers
    are donated, takes the state as an argument.
    `tests/training/test_state.py` fails if this no longer holds.
    """

    def train_step(self, state, data):
        self._put_back(state)
        batch = self.collected(data, training=True)
        try:
            stage = self._learning_stage(state)
            logs, state = stage(state, batch)
        except BaseException as error:
            if any(x.is_deleted() for x in jax.tree.leaves(state)):
                raise RuntimeError(
                    "The learning stage failed after the buffers of the "
                    "weights had been donated to it, so the weights are lost: "
                    "rebuild the model and load the last checkpoint with "
                    "`load_weights`."
                ) from error
            raise
        return self.with_host_logs(logs), state

    def test_step(self, state, data):
        self._put_back(state)
        batch = self.collected(data, training=False)
        logs, metrics = self._stage("test", self._test)(state, batch)
        return self.with_host_logs(logs), (*state[:2], metrics)

    def run_stage(self, name, function, *tensors):
        """Calls a function as a compiled stage that does not update variables.

        Args:
            name: str. Key of the compiled stage; it is compiled once.
            function: callable of tensors.
            *tensors: structures of tensors.
        """
        stage = self._stage(name, self._stateless(function))
        trainable = [v.value for v in self.trainable_variables]
        frozen = [v.value for v in self.non_trainable_variables]
        return stage(trainable, frozen, *tensors)

    @contextlib.contextmanager
    def restored_state(self):
        """Returns a context that always leaves the values in the variables."""
        try:
            yield
        finally:
            self.jax_state_sync()
            self._jax_state = None

    def _put_back(self, state):
        groups = [self.trainable_variables, self.non_trainable_variables]
        if len(state) == 4:
            groups.append(self.optimizer.variables)
        groups.append(self.metrics_variables)
        for variables, values in zip(groups, state):
            for variable, value in zip(variables, values):
                variable.assign(value)

    def _learning_stage(self, state):
        """The learning stage, whose state is donated and returned updated."""
        placed = None
        if keras.distribution.distribution() is not None:
            # Without `out_shardings` XLA could move variables to other devices.
            places = jax.tree.map(lambda value: value.sharding, state)
            placed = (None, places)
        return self._stage(
            "learn", self._learn, donate_argnums=0, out_shardings=placed
        )

    def _stage(self, name, function, **options):
        if name not in self.stages:
            if self.compiles_stages:
                self.announce(name)
                function = jax.jit(function, **options)
            self.stages[name] = function
        return self.stages[name]

    def _stateless(self, function):
        def stateless(trainable, frozen, *tensors):
            mapping = [
                *zip(self.trainable_variables, trainable),
                *zip(self.non_trainable_variables, frozen),
            ]
            with keras.StatelessScope(state_mapping=mapping):
                return jax.tree.map(many_devices.shard, function(*tensors))

        return stateless

    def _learn(self, state, batch):
        trainable, frozen, optimizer, metrics = state
        with keras.StatelessScope(state_mapping=self._mapping(state)):
            batch = self.targets(batch)
            before = self.before_update()
        differentiate = jax.value_and_grad(
            self.compute_loss_and_updates, has_aux=True
        )
        differentiated = self.truncated(
            batch,
            lambda: differentiate(
                trainable,
                frozen,
                metrics,
                batch,
                None,
                None,
                training=True,
                optimizer_variables=optimizer,
            ),
        )
        (_, (loss, outputs, frozen, metrics)), gradients = differentiated
        is_good = self.is_good(batch, outputs, loss, gradients)
        norm = global_norm(gradients)
        updated = self.optimizer.stateless_apply(
            optimizer, gradients, trainable
        )
        applies = self.applies(batch, is_good)
        updated = jax.tree.map(
            lambda new, old: jax.numpy.where(applies, new, old),
            tuple(updated),
            (trainable, optimizer),
        )
        state = (updated[0], frozen, updated[1], metrics)
        with keras.StatelessScope(state_mapping=self._mapping(state)) as scope:
            logs = self.after_update(
                batch, outputs, loss, before, is_good, norm
            )
        frozen = _current(scope, self.non_trainable_variables, frozen)
        metrics = _current(scope, self.metrics_variables, metrics)
        return logs, (updated[0], frozen, updated[1], metrics)

    def _test(self, state, batch):
        mapping = self._mapping((*state[:2], [], state[2]))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logs = self.evaluate_batch(self.targets(batch))
        return logs, _current(scope, self.metrics_variables, state[2])

    def _mapping(self, state):
        trainable, frozen, optimizer, metrics = state
        return [
            *zip(self.trainable_variables, trainable),
            *zip(self.non_trainable_variables, frozen),
            *zip(self.optimizer.variables if optimizer else [], optimizer),
            *zip(self.metrics_variables, metrics),
        ]


def _current(scope, variables, values):
    changed = [scope.get_current_value(variable) for variable in variables]
    return [old if new is None else new for new, old in zip(changed, values)]


def learning_memory(trainer, batch):
    """Bytes that XLA sets aside for the gradient of a batch; nothing runs.

    Args:
        trainer: a trainer of keras_bond.
        batch: dict of `keras.KerasTensor`, what it learns from.

    Returns:
        int, gradients included, or `None` where no compiler tells.
    """

    def loss(trainable, frozen, batch):
        mapping = [
            *zip(trainer.trainable_variables, trainable),
            *zip(trainer.non_trainable_variables, frozen),
        ]
        with keras.StatelessScope(state_mapping=mapping):
            batch = trainer.targets(batch)
            return trainer.compute_loss(x=batch, y_pred=trainer(batch))

    tensors = {
        name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
        for name, tensor in batch.items()
    }
    values = [
        [variable.value for variable in variables]
        for variables in (
            trainer.trainable_variables,
            trainer.non_trainable_variables,
        )
    ]
    compiled = jax.jit(jax.grad(loss)).lower(*values, tensors).compile()
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return memory.temp_size_in_bytes + memory.output_size_in_bytes
