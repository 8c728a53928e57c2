"""What differs by the backend of Keras when one measures."""

import statistics
import time

import keras

COMPILED = "/jax/core/compile/backend_compile_duration"
# Of a call whose time is wanted: so often, or for so many seconds.
REPEATS, LEAST_REPEATS, SECONDS = 20, 3, 3.0


def wait(outputs):
    """Returns `outputs` when the device is done with them."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.block_until_ready(outputs)
    if backend == "tensorflow":
        for leaf in keras.tree.flatten(outputs):
            if hasattr(leaf, "numpy"):
                leaf.numpy()
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return outputs


def thread_setter():
    """A function that sets the number of threads, where there is one."""
    if keras.config.backend() != "torch":
        return None
    import torch

    return torch.set_num_threads


class Compilations:
    """Counts what JAX compiles, or what TensorFlow traces.

    Args:
        stages: dict of `tf.function`, live; unused on JAX.
    """

    def __init__(self, stages=None):
        self.stages = {} if stages is None else stages
        self.count = 0
        if keras.config.backend() == "jax":
            import jax

            jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration, **kwargs):
        self.count += event == COMPILED

    def __call__(self):
        traced = (
            stage.experimental_get_tracing_count()
            for stage in self.stages.values()
            if hasattr(stage, "experimental_get_tracing_count")
        )
        return self.count + sum(traced)


def compile_update(function, changed, read=()):
    """Compiles `function()`, which assigns to variables.

    Args:
        function: callable without arguments.
        changed: list of `keras.Variable` that it assigns to.
        read: list of `keras.Variable` that it reads besides.

    Returns:
        a callable without arguments; on JAX the assigned values go round
        outside the variables, which keep their own.
    """
    backend = keras.config.backend()
    if backend == "jax":
        return _JaxUpdate(function, changed, read)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    import torch

    return torch.no_grad()(function)


class _JaxUpdate:
    def __init__(self, function, changed, read):
        import jax

        self.values = [jax.numpy.copy(v.value) for v in changed]
        self.others = [v.value for v in read]

        def update(values, others):
            mapping = [*zip(changed, values), *zip(read, others)]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                function()
            return [scope.get_current_value(v) for v in changed]

        self.update = jax.jit(update, donate_argnums=0)

    def __call__(self):
        self.values = self.update(self.values, self.others)
        return self.values


def compile_pure(function):
    """Compiles a function of tensors that touches no variable."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    import torch

    return torch.no_grad()(function)


def seconds_of(function):
    """Median time of a call, after one that compiles."""
    wait(function())
    times = []
    while len(times) < LEAST_REPEATS or (
        len(times) < REPEATS and sum(times) < SECONDS
    ):
        start = time.perf_counter()
        wait(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def specs_of(arguments):
    """Shapes and dtypes in place of JAX arrays, which may be given away."""
    import jax

    return jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x
        ),
        arguments,
    )


def temp_bytes(stage, specs):
    """Bytes that XLA sets aside for a compiled function beside its arguments
    and results."""
    analysis = stage.lower(*specs).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)
