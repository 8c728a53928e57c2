"""PyTorch: every stage runs eagerly, the rollout without a graph."""

import contextlib

import torch
from keras import tree
from torch.utils.checkpoint import checkpoint

from keras_bond.backend.host import host_memory
from keras_bond.backend.step import Step

# Asking whether rows have ended waits for the device: ask once in so many
# tokens.
CHECK_EVERY = 16
# Rows are only worth moving together once a good part of them has ended.
WORTH_DROPPING = 0.25


def decode_loop(body, start, stop, state, cache):
    """Runs `state, cache = body(index, state, cache)` for each token.

    Args:
        body: callable.
        start, stop: int scalar tensor and int. Indices of the tokens.
        state: dict of tensors `(rows, ...)`; `"ended"`, bool, marks rows that
            need no further token, and are dropped on the way. When all have
            ended, the loop does too.
        cache: nested structure of tensors `(rows, ...)`.

    Returns:
        the last `state`.
    """
    rows, rest = None, state
    for index in range(int(start), stop):
        cache = tree.map_structure(_Updatable.of, cache)
        rest, cache = body(index, rest, cache)
        if index % CHECK_EVERY == 0:
            going_on = torch.nonzero(~rest["ended"])[:, 0]
            if len(going_on) == 0:
                break
            if len(going_on) <= (1 - WORTH_DROPPING) * len(rest["ended"]):
                state = _put(state, rows, rest)
                rows = going_on if rows is None else rows[going_on]
                rest, cache = _take((rest, cache), going_on)
    return _put(state, rows, rest)


def _take(tensors, rows):
    return tree.map_structure(lambda x: x[rows], tensors)


def _put(state, rows, values):
    """Writes the values of some rows into the state of all of them."""
    if rows is None:
        return values
    return {
        name: tensor.index_copy(0, rows, values[name])
        for name, tensor in state.items()
    }


class _Updatable(torch.Tensor):
    """A tensor that is updated in place where Keras would copy it.

    `keras.ops.slice_update` clones what it updates, the whole key-value cache
    once a token. Nobody reads an old cache again: a clone is the thing itself.
    """

    @classmethod
    def of(cls, tensor):
        return tensor.as_subclass(cls)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.clone, torch.Tensor.clone):
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.__getitem__:
            return result.as_subclass(cls)
        return result


def rematerialize(function, variables):
    """Lets the backward pass compute a function again, not remember it.

    Args:
        function: callable of tensors.
        variables: list of `keras.Variable`, all that it reads.
    """
    del variables
    return lambda *tensors: checkpoint(
        function, *tensors, use_reentrant=False, preserve_rng_state=False
    )


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
    apply = rematerialize(function, variables)
    num_parts = len(tree.flatten(tensors)[0])
    results = [
        apply(tree.map_structure(lambda x, i=i: x[i], tensors))
        for i in range(num_parts)
    ]
    return tree.map_structure(lambda *parts: torch.stack(parts), *results)


def prefers_flat_products():
    """Whether gradients of products over two axes are slow: not here."""
    return False


def compile_forward(function, variables, static_argnums=()):
    """Wraps a function of tensors so that it builds no graph."""
    del variables, static_argnums
    return torch.no_grad()(function)


def device_memory():
    """Returns the name of the device that computes, and its memory.

    Returns:
        `(name, bytes)`: str, and int, or `None` where it is not known.
    """
    if not torch.cuda.is_available():
        return host_memory()
    return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]


def foreign_strategy():
    """Name of what shares out the work of this process."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    return "torch.distributed" if distributed.get_world_size() > 1 else None


class StagedTrainer(Step):
    """Runs a step eagerly: Python between stages that build no graph.

    A reward may do what it likes, and its exceptions surface as themselves.
    """

    def train_step(self, data):
        batch = self.collect(data[0], training=True)
        return self._stage("learn", self._learn)(batch)

    def test_step(self, data):
        batch = self.collect(data[0], training=False)
        return self._stage("test", self._test)(batch)

    def run_stage(self, name, function, *tensors):
        """Calls a function as a stage that updates no variable.

        Args:
            name: str. Used where stages are compiled.
            function: callable of tensors.
            *tensors: structures of tensors.
        """
        with torch.no_grad():
            return self._stage(name, function)(*tensors)

    def _stage(self, name, function):
        return self.stages.setdefault(name, function)

    def state_at_home(self):
        """The current values are always in the variables."""
        return contextlib.nullcontext()

    @torch.no_grad()
    def _test(self, batch):
        return self.evaluate_batch(self.targets(batch))

    def _learn(self, batch):
        with torch.no_grad():
            batch = self.targets(batch)
            watched = self.watch_weights()
        self.zero_grad()
        outputs = self(batch)
        loss = self.compute_loss(x=batch, y_pred=outputs)
        self.optimizer.scale_loss(loss).backward()
        weights = self.trainable_weights
        gradients = [v.value.grad for v in weights]
        with torch.no_grad():
            is_good = self.is_good(batch, loss, gradients)
            if self.protects_itself() or bool(is_good):
                self.optimizer.apply(gradients, weights)
            return self.after_update(batch, outputs, loss, watched, is_good)


def learning_memory(trainer, batch):
    """Bytes that learning from a batch takes: nobody tells before it runs."""
    return None
