"""A TensorFlow session without XLA, as TensorFlow Serving runs models.

TensorFlow Serving switches just-in-time compilation by XLA off when it starts.
`ServerSession` does the same for the whole process, so run it in a process of
its own: a model with XLA operations then fails here as it does on the server.
"""

import ctypes
import pathlib

import tensorflow as tf

FOLDER = pathlib.Path(tf.__file__).parent
# `tensorflow::DisableXlaCompilation()`, which the server calls when it starts.
DISABLE_XLA = "_ZN10tensorflow21DisableXlaCompilationEv"
TOKENIZER = "tensorflow_text/python/ops/_sentencepiece_tokenizer.so"


class ServerSession:
    """A SavedModel in a session without XLA.

    Args:
        path: str. Folder of one version of the model.

    Attributes:
        signatures: dict of name to `tensorflow.SignatureDef`.
    """

    def __init__(self, path):
        ctypes.CDLL(str(FOLDER / "libtensorflow_cc.so.2"))[DISABLE_XLA]()
        tf.load_op_library(str(FOLDER.parent / TOKENIZER))
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            self.signatures = tf.compat.v1.saved_model.load(
                self._session, ["serve"], str(path)
            ).signature_def

    def run(self, signature, inputs):
        """Runs one signature.

        Args:
            signature: str.
            inputs: dict of name to array.

        Returns:
            dict of name to NumPy array; strings are bytes in object arrays.

        Raises:
            KeyError: if the signature or one of its inputs is missing.
            RuntimeError: with TensorFlow's message, if the model fails.
        """
        if signature not in self.signatures:
            raise KeyError(signature)
        described = self.signatures[signature]
        feeds = {x.name: inputs[k] for k, x in described.inputs.items()}
        fetches = {k: x.name for k, x in described.outputs.items()}
        try:
            return self._session.run(fetches, feeds)
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise RuntimeError(str(error)) from error
