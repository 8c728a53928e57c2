"""TensorFlow backend: each stage is one `tf.function`, compiled with XLA."""

import contextlib

import keras
import tensorflow as tf
from keras import ops
from keras import tree
from tensorflow.python.client import device_lib
from tensorflow.python.framework import ops as framework

from keras_bond.backend.host import host_memory
from keras_bond.backend.step import Step
from keras_bond.backend.step import global_norm


def _gradient_of_slice_update(op, upstream):
    """Gradient of `keras.ops.slice_update`, for which TensorFlow has none."""
    _, update, start = op.inputs
    of_update = tf.slice(upstream, start, tf.shape(update))
    of_input = ops.slice_update(upstream, start, tf.zeros_like(update))
    return of_input, of_update, None


# A future TensorFlow may have its own.
with contextlib.suppress(KeyError):
    tf.RegisterGradient("XlaDynamicUpdateSlice")(_gradient_of_slice_update)


def _compiled(function, jit_compile=True):
    """Compiles a function whose gradients, if any, are taken within it.

    A graph with a `tf.custom_gradient` registers the gradient, and with it the
    graph and every variable that it reads, for the life of the process. The
    gradient is not looked up again after tracing: it is removed, so that a
    trainer that is no longer used leaves the memory.
    """

    def traced(*tensors):
        registered = framework.gradient_registry._registry
        known = set(registered)
        try:
            return function(*tensors)
        finally:
            for name in set(registered) - known:
                if name.startswith("CustomGradient"):
                    del registered[name]

    return tf.function(traced, jit_compile=jit_compile, autograph=False)


def rematerialize(function, variables):
    """Makes the backward pass recompute a function instead of storing it.

    Args:
        function: callable of tensors that returns a tensor.
        variables: list of `keras.Variable` that the function reads.
    """

    def rematerialized(*tensors):
        one_part = tree.map_structure(lambda x: x[None], tensors)
        mapped = map_parts(lambda part: function(*part), one_part, variables)
        return tree.map_structure(lambda x: x[0], mapped)

    return rematerialized


def map_parts(function, tensors, variables, num_used=None):
    """Applies a function to one part after another, rematerialized.

    `tf.recompute_grad` (tensorflow/python/ops/custom_gradient.py) watches only
    its arguments and the variables that it finds. It loses the gradients of
    variables inside a loop, and of tensors that the function closes over. Here
    `tf.custom_gradient`, from the same file, takes the values of the variables
    as arguments. In tests/rollouts/test_network.py,
    `test_parts_change_neither_values_nor_gradients` and
    `test_nested_parts_have_the_plain_gradient` fail if a gradient is lost.

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
    values = [tf.convert_to_tensor(variable.value) for variable in variables]
    num_values = len(values)
    flat = [tf.convert_to_tensor(x) for x in tree.flatten(tensors)]
    num_parts = flat[0].shape[0]
    structure = None

    def apply(values, part):
        nonlocal structure
        mapping = list(zip(variables, values))
        with keras.StatelessScope(state_mapping=mapping):
            structure = function(tree.pack_sequence_as(tensors, part))
        return [tf.convert_to_tensor(x) for x in tree.flatten(structure)]

    # Forward and backward pass have a loop each. Differentiating through a
    # single `tf.while_loop` would store the activations of all iterations,
    # which recomputation has to avoid. In the explicit backward loop, a tape
    # sees one part at a time and there is never a gradient of a loop.
    @tf.custom_gradient
    def mapped(*arguments):
        values, flat = arguments[:num_values], arguments[num_values:]
        outputs = _loop(
            lambda i: apply(values, [x[i] for x in flat]), num_parts, num_used
        )

        def gradient(*upstream):
            differentiable = [x.dtype.is_floating for x in arguments]
            trained = [
                v.trainable and is_float
                for v, is_float in zip(variables, differentiable)
            ]

            def pull_back(i):
                part = [x[i] for x in flat]
                watched = [v for v, chosen in zip(values, trained) if chosen]
                watched += [x for x in part if x.dtype.is_floating]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(watched)
                    results = apply(values, part)
                gradients = tape.gradient(
                    results,
                    watched,
                    output_gradients=[x[i] for x in upstream],
                    unconnected_gradients="zero",
                )
                return [tf.convert_to_tensor(x) for x in gradients]

            found = _loop(pull_back, num_parts, num_used, sum(trained))
            found = iter(found)
            chosen = [*trained, *differentiable[num_values:]]
            return [next(found) if yes else None for yes in chosen]

        return outputs, gradient

    results = mapped(*values, *flat)
    if not isinstance(results, (list, tuple)):
        results = [results]
    return tree.pack_sequence_as(structure, list(results))


def _loop(function, num_parts, num_used=None, num_sums=0):
    """Runs `function(i)` for each part, and sums or stacks the results.

    Args:
        function: callable of an int scalar that returns a list of tensors.
        num_parts: int.
        num_used: int scalar tensor, or `None`. Parts after them are zeros; the
            first is always computed.
        num_sums: int. Number of results, the first ones, that are summed; the
            rest is stacked.

    Returns:
        list of tensors.
    """
    first = function(tf.constant(0))
    sums, stacks = first[:num_sums], first[num_sums:]
    if num_parts == 1:
        return [*sums, *[x[None] for x in stacks]]
    stacks = [
        tf.concat([x[None], tf.zeros((num_parts - 1, *x.shape), x.dtype)], 0)
        for x in stacks
    ]

    def advance(i, sums, stacks):
        results = function(i)
        sums = [old + new for old, new in zip(sums, results)]
        stacks = [
            ops.slice_update(old, (i, *[0] * len(new.shape)), new[None])
            for old, new in zip(stacks, results[num_sums:])
        ]
        return i + 1, sums, stacks

    end = num_parts if num_used is None else num_used
    _, sums, stacks = tf.while_loop(
        lambda i, *_: i < end,
        advance,
        (tf.constant(1), sums, stacks),
        maximum_iterations=num_parts - 1,
    )
    return [*sums, *stacks]


def prefers_flat_products():
    """Whether gradients of products over two axes are slow, as on CPUs."""
    kinds = {device.device_type for device in tf.config.list_logical_devices()}
    return kinds == {"CPU"}


def compile_forward(function, variables, static_argnums=()):
    """Compiles a function that reads `variables` but does not update them.

    Arguments listed in `static_argnums` are hashable Python values, which
    `tf.function` traces by value anyway.
    """
    del variables, static_argnums
    return _compiled(function)


def device_memory():
    """Returns the name and the memory of the device.

    Returns:
        `(name, bytes)`: str, and int or `None` if it is unknown.
    """
    accelerators = [
        device
        for device in device_lib.list_local_devices()
        if device.device_type in ("GPU", "TPU")
    ]
    if not accelerators:
        return host_memory()
    device = accelerators[0]
    # "device: 0, name: NVIDIA L4, pci bus id: ..."
    described = dict(
        part.split(": ", 1)
        for part in device.physical_device_desc.split(", ")
        if ": " in part
    )
    name = described.get("name", device.name)
    return name, device.memory_limit or None


def foreign_strategy():
    """Returns the name of the current `tf.distribute` strategy."""
    strategy = tf.distribute.get_strategy()
    is_shared = strategy.num_replicas_in_sync > 1
    return f"tf.distribute.{type(strategy).__name__}" if is_shared else None


class StagedTrainer(Step):
    """Runs a training step as Python that calls compiled stages.

    A reward is ordinary Python, and its exceptions are raised unchanged.
    """

    ends_of_data = (StopIteration, tf.errors.OutOfRangeError)

    def train_step(self, data):
        batch = self.collected(data, training=True)
        logs = self._stage("learn", self._learn)(batch)
        return self.with_host_logs(logs)

    def test_step(self, data):
        batch = self.collected(data, training=False)
        logs = self._stage("test", self._test)(batch)
        return self.with_host_logs(logs)

    def run_stage(self, name, function, *tensors):
        """Calls a function as a compiled stage that does not update variables.

        Args:
            name: str. Key of the compiled stage; it is compiled once.
            function: callable of tensors.
            *tensors: structures of tensors.
        """
        return self._stage(name, function)(*tensors)

    def _stage(self, name, function):
        if name not in self.stages:
            if self.compiles_stages:
                self.announce(name)
                function = _compiled(function, self.jit_compiles_stages)
            self.stages[name] = function
        return self.stages[name]

    def restored_state(self):
        """Returns an empty context: values are always in the variables."""
        return contextlib.nullcontext()

    def _learn(self, batch):
        batch = self.targets(batch)
        before = self.before_update()
        weights = self.trainable_weights

        def differentiate():
            with tf.GradientTape() as tape:
                outputs = self(batch)
                loss = self.compute_loss(x=batch, y_pred=outputs)
                scaled = self.optimizer.scale_loss(loss)
            # A conditional returns tensors: no `None`, and no slices.
            gradients = {
                str(i): tf.convert_to_tensor(gradient)
                for i, gradient in enumerate(tape.gradient(scaled, weights))
                if gradient is not None
            }
            return outputs, loss, gradients

        outputs, loss, gradients = self.truncated(batch, differentiate)
        gradients = [gradients.get(str(i)) for i in range(len(weights))]
        is_good = self.is_good(batch, outputs, loss, gradients)
        norm = global_norm(gradients)
        ops.cond(
            self.applies(batch, is_good),
            lambda: self.optimizer.apply(gradients, weights),
            lambda: None,
        )
        return self.after_update(batch, outputs, loss, before, is_good, norm)

    def _test(self, batch):
        return self.evaluate_batch(self.targets(batch))


def learning_memory(trainer, batch):
    """Bytes that learning from a batch takes: nobody tells before it runs."""
    return None
