"""PyTorch backend: all stages run eagerly."""

import contextlib

import torch
from keras import tree
from torch.utils.checkpoint import checkpoint

from keras_bond.backend import torch_graph
from keras_bond.backend.host import host_memory
from keras_bond.backend.step import Step
from keras_bond.backend.step import global_norm

# Number of tokens between two checks for ended rows, as each check has to wait
# for the device.
CHECK_EVERY = 16
# Fraction of rows that must have ended before the rest is copied together.
WORTH_DROPPING = 0.5
# Number of tokens from which on recording a step pays.
WORTH_RECORDING = 16


def decode_loop(body, start, stop, state, cache):
    """Runs `state, cache = body(index, state, cache)` for each token.

    Args:
        body: callable.
        start: int scalar tensor. First index.
        stop: int. End of the range of indices.
        state: dict of tensors `(rows, ...)`. Rows whose entry of `"ended"`, a
            bool tensor `(rows,)`, is True are removed during the loop, which
            stops early when all rows have ended.
        cache: nested structure of tensors `(rows, ...)`.

    Returns:
        the final `state`, with all rows.
    """
    rows, rest, step = None, state, None
    first, index = int(start), start.clone()
    with torch_graph.tensor_indices():
        for number in range(first, stop):
            if step is None:
                step = body
                if stop - number >= WORTH_RECORDING:
                    step = torch_graph.record(body, index, rest, cache)
            rest, cache = step(index, rest, cache)
            index += 1
            if number % CHECK_EVERY == 0:
                unfinished = torch.nonzero(~rest["ended"])[:, 0]
                if len(unfinished) == 0:
                    break
                if len(unfinished) <= (1 - WORTH_DROPPING) * len(rest["ended"]):
                    state = _put(state, rows, rest)
                    rows = unfinished if rows is None else rows[unfinished]
                    rest, cache = _take((rest, cache), unfinished)
                    step = None
    return _put(state, rows, rest)


def _take(tensors, rows):
    return tree.map_structure(lambda x: x[rows], tensors)


def _put(state, rows, values):
    """Writes the values of some rows into the state of all rows."""
    if rows is None:
        return values
    return {
        name: tensor.index_copy(0, rows, values[name])
        for name, tensor in state.items()
    }


def rematerialize(function, variables):
    """Makes the backward pass recompute a function instead of storing it.

    Args:
        function: callable of tensors.
        variables: list of `keras.Variable` that the function reads.
    """
    del variables
    return lambda *tensors: checkpoint(
        function, *tensors, use_reentrant=False, preserve_rng_state=False
    )


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
    apply = rematerialize(function, variables)
    num_parts = len(tree.flatten(tensors)[0])
    # At least one part, whose results have the shapes of the others.
    num_used = num_parts if num_used is None else max(1, int(num_used))
    results = [
        apply(tree.map_structure(lambda x, i=i: x[i], tensors))
        for i in range(num_used)
    ]
    zeros = tree.map_structure(torch.zeros_like, results[0])
    results += [zeros] * (num_parts - num_used)
    return tree.map_structure(lambda *parts: torch.stack(parts), *results)


def prefers_flat_products():
    """Whether gradients of products over two axes are slow: not on PyTorch."""
    return False


def compile_forward(function, variables, static_argnums=()):
    """Wraps a function of tensors in `torch.no_grad`."""
    del variables, static_argnums
    return torch.no_grad()(function)


def device_memory():
    """Returns the name and the memory of the device.

    Returns:
        `(name, bytes)`: str, and int or `None` if it is unknown.
    """
    if not torch.cuda.is_available():
        return host_memory()
    return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]


def foreign_strategy():
    """Returns the name of the strategy that distributes this process."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    return "torch.distributed" if distributed.get_world_size() > 1 else None


class StagedTrainer(Step):
    """Runs a training step eagerly, with gradients for the learning stage only.

    A reward is ordinary Python, and its exceptions are raised unchanged.
    """

    def train_step(self, data):
        batch = self.collected(data, training=True)
        logs = self._stage("learn", self._learn)(batch)
        return self.with_host_logs(logs)

    def test_step(self, data):
        batch = self.collected(data, training=False)
        logs = self._stage("test", self._test)(batch)
        return self.with_host_logs(logs)

    def run_stage(self, name, function, *tensors):
        """Calls a function as a stage that does not update variables.

        Args:
            name: str. Key of the stage.
            function: callable of tensors.
            *tensors: structures of tensors.
        """
        with torch.no_grad():
            return self._stage(name, function)(*tensors)

    def _stage(self, name, function):
        return self.stages.setdefault(name, function)

    def restored_state(self):
        """Returns an empty context: values are always in the variables."""
        return contextlib.nullcontext()

    @torch.no_grad()
    def _test(self, batch):
        return self.evaluate_batch(self.targets(batch))

    def _learn(self, batch):
        with torch.no_grad():
            batch = self.targets(batch)
            before = self.before_update()
        self.zero_grad()

        def differentiate():
            outputs = self(batch)
            loss = self.compute_loss(x=batch, y_pred=outputs)
            self.optimizer.scale_loss(loss).backward()
            return outputs, loss

        outputs, loss = self.truncated(batch, differentiate)
        weights = self.trainable_weights
        gradients = [v.value.grad for v in weights]
        with torch.no_grad():
            is_good = self.is_good(batch, outputs, loss, gradients)
            # The optimizer may change them in place.
            norm = global_norm(gradients)
            if self.applies(batch, is_good):
                self.optimizer.apply(gradients, weights)
            return self.after_update(
                batch, outputs, loss, before, is_good, norm
            )


def learning_memory(trainer, batch):
    """Bytes that learning from a batch takes: nobody tells before it runs."""
    return None
