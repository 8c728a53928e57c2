"""A C++ session of the TensorFlow library, without XLA, as the server has it.

TensorFlow Serving is this library behind a network interface, with just-in-time
compilation by XLA switched off. `CppSession` loads a SavedModel through the C
interface of the library in the TensorFlow wheel and switches XLA off for the
whole process, so give it a process of its own.
"""

import ctypes
import pathlib

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

FOLDER = pathlib.Path(tf.__file__).parent
LIBRARY = FOLDER / "libtensorflow_cc.so.2"
TOKENIZER = (
    FOLDER.parent / "tensorflow_text/python/ops/_sentencepiece_tokenizer.so"
)
# `tensorflow::DisableXlaCompilation()`, which the server calls when it starts.
DISABLE_XLA = "_ZN10tensorflow21DisableXlaCompilationEv"
# Bytes of a string inside a tensor.
STRING_BYTES = 24

_library = ctypes.CDLL(str(LIBRARY))
for _name in (
    "TF_NewStatus",
    "TF_NewGraph",
    "TF_NewBuffer",
    "TF_NewSessionOptions",
    "TF_LoadSessionFromSavedModel",
    "TF_LoadLibrary",
    "TF_AllocateTensor",
    "TF_TensorData",
    "TF_GraphOperationByName",
):
    getattr(_library, _name).restype = ctypes.c_void_p
for _name in ("TF_Message", "TF_StringGetDataPointer"):
    getattr(_library, _name).restype = ctypes.c_void_p
for _name in ("TF_StringGetSize", "TF_TensorByteSize"):
    getattr(_library, _name).restype = ctypes.c_size_t
_library.TF_Dim.restype = ctypes.c_int64


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    ]


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class _Status:
    """Turns a bad status of the library into a Python error."""

    def __init__(self):
        self.pointer = ctypes.c_void_p(_library.TF_NewStatus())

    def check(self):
        if _library.TF_GetCode(self.pointer):
            message = _library.TF_Message(self.pointer)
            raise RuntimeError(ctypes.string_at(message).decode())


class CppSession:
    """A SavedModel in a C++ session.

    Args:
        path: str. Folder of one version of the model.

    Attributes:
        signatures: dict of name to `tensorflow.SignatureDef`.

    Raises:
        RuntimeError: with the message of the library, also when running.
    """

    def __init__(self, path):
        getattr(_library, DISABLE_XLA)()
        status = _Status()
        _library.TF_LoadLibrary(str(TOKENIZER).encode(), status.pointer)
        status.check()
        self._graph = ctypes.c_void_p(_library.TF_NewGraph())
        meta_graph = ctypes.c_void_p(_library.TF_NewBuffer())
        self._session = ctypes.c_void_p(
            _library.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(_library.TF_NewSessionOptions()),
                None,
                str(path).encode(),
                (ctypes.c_char_p * 1)(b"serve"),
                1,
                self._graph,
                meta_graph,
                status.pointer,
            )
        )
        status.check()
        buffer = ctypes.cast(meta_graph, ctypes.POINTER(_Buffer)).contents
        self.signatures = dict(
            meta_graph_pb2.MetaGraphDef.FromString(
                ctypes.string_at(buffer.data, buffer.length)
            ).signature_def
        )

    def run(self, signature, inputs):
        """Runs one signature.

        Args:
            signature: str.
            inputs: dict of name to array, which gets the input's dtype.

        Returns:
            dict of name to NumPy array; strings are bytes in object arrays.

        Raises:
            KeyError: if the signature or one of its inputs is missing.
        """
        described = self.signatures[signature]
        names = list(described.outputs)
        feeds = [
            _to_tensor(inputs[name], info.dtype)
            for name, info in described.inputs.items()
        ]
        fetched = (ctypes.c_void_p * len(names))()
        status = _Status()
        _library.TF_SessionRun(
            self._session,
            None,
            self._places(described.inputs.values()),
            (ctypes.c_void_p * len(feeds))(*feeds),
            len(feeds),
            self._places(described.outputs.values()),
            fetched,
            len(names),
            None,
            0,
            None,
            status.pointer,
        )
        for tensor in feeds:
            _library.TF_DeleteTensor(ctypes.c_void_p(tensor))
        status.check()
        return {
            name: _to_array(ctypes.c_void_p(tensor))
            for name, tensor in zip(names, fetched)
        }

    def _places(self, infos):
        places = []
        for info in infos:
            operation, index = info.name.split(":")
            found = _library.TF_GraphOperationByName(
                self._graph, operation.encode()
            )
            places.append(_Output(found, int(index)))
        return (_Output * len(places))(*places)


def _to_tensor(values, dtype):
    """Copies an array into a tensor of the library; returns its address."""
    dtype = tf.dtypes.as_dtype(dtype)
    array = np.asarray(values, dtype.as_numpy_dtype)
    size = STRING_BYTES if dtype == tf.string else dtype.size
    dims = (ctypes.c_int64 * array.ndim)(*array.shape)
    tensor = _library.TF_AllocateTensor(
        dtype.as_datatype_enum, dims, array.ndim, array.size * size
    )
    data = _library.TF_TensorData(ctypes.c_void_p(tensor))
    if dtype != tf.string:
        array = np.ascontiguousarray(array)
        ctypes.memmove(data, array.ctypes.data, array.nbytes)
        return tensor
    for i, text in enumerate(array.ravel()):
        text = text.encode() if isinstance(text, str) else text
        place = ctypes.c_void_p(data + i * STRING_BYTES)
        _library.TF_StringInit(place)
        _library.TF_StringCopy(place, text, ctypes.c_size_t(len(text)))
    return tensor


def _to_array(tensor):
    """Copies a tensor of the library into an array, and lets it go."""
    dtype = tf.dtypes.as_dtype(_library.TF_TensorType(tensor))
    rank = _library.TF_NumDims(tensor)
    shape = [_library.TF_Dim(tensor, i) for i in range(rank)]
    data = _library.TF_TensorData(tensor)
    if dtype == tf.string:
        places = [
            ctypes.c_void_p(data + i * STRING_BYTES)
            for i in range(int(np.prod(shape)))
        ]
        texts = [
            ctypes.string_at(
                _library.TF_StringGetDataPointer(place),
                _library.TF_StringGetSize(place),
            )
            for place in places
        ]
        array = np.array(texts, object)
    else:
        content = ctypes.string_at(data, _library.TF_TensorByteSize(tensor))
        array = np.frombuffer(content, dtype.as_numpy_dtype)
    _library.TF_DeleteTensor(tensor)
    return array.reshape(shape)
