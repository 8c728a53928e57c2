"""A step of decoding on PyTorch, recorded once and replayed for each token.

Keras and KerasHub take milliseconds of Python per block and token, whatever
the size of the network. A recorded step is a list of PyTorch's own operations.
"""

import contextlib
import operator
import os

import keras
import torch
from keras import tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

# Graphs were never launched on a GPU yet: `integration/gpu.py` compares their
# completions with those of the loop.
USES_CUDA_GRAPHS = os.environ.get("KERAS_BOND_CUDA_GRAPHS") == "1"
# Operations after which Python knows what a tensor holds.
UNRECORDABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def record(body, index, state, cache):
    """Records `state, cache = body(index, state, cache)`, which it calls.

    What depends on none of the three is computed once, such as weights that
    are cast and kernels that LoRA adapters are added to: a record is valid as
    long as weights do not change.

    Args:
        body: callable.
        index: int32 scalar tensor, which the caller updates in place.
        state, cache: structures of tensors, of which `body` may update caches
            in place. A record holds for their shapes.

    Returns:
        a callable like `body`; or `body` itself if it asks for the value of a
        tensor, which may be another one at the next token.
    """
    structure = (state, cache)
    inputs = [index, *tree.flatten(structure)]
    recorder = Recorder(inputs)
    try:
        with recorder:
            outputs = tree.flatten(body(index, state, cache))
    except UnrecordableError:
        return body
    function = recorder.function(outputs)
    if index.is_cuda and USES_CUDA_GRAPHS:
        function = CudaGraph(function, inputs)
    return lambda index, state, cache: tree.pack_sequence_as(
        structure, function(index, *tree.flatten((state, cache)))
    )


class UnrecordableError(RuntimeError):
    """A function that depends on the values of tensors."""


class Recorder(TorchDispatchMode):
    """Notes all operations on tensors that depend on some inputs.

    Args:
        inputs: list of tensors.
    """

    def __init__(self, inputs):
        super().__init__()
        self.graph = torch.fx.Graph()
        self.constants = torch.nn.Module()
        self.nodes = WeakIdKeyDictionary()
        for i, tensor in enumerate(inputs):
            self.nodes[tensor] = self.graph.placeholder(f"input_{i}")

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        outputs = operation(*args, **kwargs)
        tensors = _tensors((args, kwargs))
        if not any(x in self.nodes for x in tensors):
            return outputs
        writes = operation._schema.is_mutable and tensors[0] not in self.nodes
        if writes or UNRECORDABLE & set(operation.tags):
            raise UnrecordableError(str(operation))
        arguments = tree_map_only(torch.Tensor, self._node, (args, kwargs))
        node = self.graph.call_function(operation, *arguments)
        if isinstance(outputs, torch.Tensor):
            self.nodes.setdefault(outputs, node)
        else:
            for i, output in enumerate(outputs):
                self.nodes[output] = self.graph.call_function(
                    operator.getitem, (node, i)
                )
        return outputs

    def _node(self, tensor):
        """The node of a tensor, maybe of one that depends on no input."""
        if tensor in self.nodes:
            return self.nodes[tensor]
        name = f"constant_{len(self.graph.nodes)}"
        self.constants.register_buffer(name, tensor, persistent=False)
        return self.graph.get_attr(name)

    def function(self, outputs):
        """A function of the inputs that returns what became `outputs`."""
        self.graph.output([self._node(x) for x in outputs])
        return torch.fx.GraphModule(self.constants, self.graph)


def _tensors(structure):
    leaves = tree_leaves(structure)
    return [x for x in leaves if isinstance(x, torch.Tensor)]


@contextlib.contextmanager
def tensor_indices():
    """Returns a context in which a cache is read and updated at a tensor.

    `keras.ops.slice` asks the device for the value of an index, and waits;
    `keras.ops.slice_update` copies the whole cache. In a decode loop the old
    cache is never read again, and is updated in place. KerasHub looks both up
    in `keras.ops` when it calls them.
    `test_pytorch_drops_ended_rows_and_copies_no_cache` in
    tests/rollouts/test_decoder.py fails if a cache is copied.
    """
    plain = keras.ops.slice, keras.ops.slice_update

    def slice_(inputs, start_indices, shape):
        axes = _tensor_axes(start_indices)
        if not axes:
            return plain[0](inputs, start_indices, shape)
        for axis, size in enumerate(shape):
            start = start_indices[axis]
            if axis in axes:
                inputs = inputs.index_select(axis, _places(start, size))
            else:
                inputs = inputs.narrow(axis, start, size)
        return inputs

    def slice_update(inputs, start_indices, updates):
        axes = _tensor_axes(start_indices)
        if not axes:
            return plain[1](inputs, start_indices, updates)
        (moving,) = axes
        part = inputs
        for axis, size in enumerate(updates.shape):
            if axis != moving:
                part = part.narrow(axis, start_indices[axis], size)
        places = _places(start_indices[moving], updates.shape[moving])
        part.index_copy_(moving, places, updates.to(inputs.dtype))
        return inputs

    keras.ops.slice, keras.ops.slice_update = slice_, slice_update
    try:
        yield
    finally:
        keras.ops.slice, keras.ops.slice_update = plain


def _tensor_axes(indices):
    return [i for i, index in enumerate(indices) if torch.is_tensor(index)]


def _places(start, size):
    return start.long() + torch.arange(size, device=start.device)


class CudaGraph:
    """The kernels of a function of tensors, launched together.

    Args:
        function: callable of tensors that returns all but the first, updated.
        inputs: list of tensors, the memory of inputs and outputs.
    """

    def __init__(self, function, inputs):
        self.tensors = inputs[1:]
        # Libraries set aside memory when they are called first, which they
        # must not do while a graph is recorded.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for old, new in zip(self.tensors, function(*inputs)):
                if new is not old:
                    old.copy_(new)

    def __call__(self, index, *tensors):
        self.graph.replay()
        return self.tensors
