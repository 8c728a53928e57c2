"""One contender in a process of its own: Keras has one backend a process.

python speed_worker.py CONTENDER '{"vocabulary": ..., ...}'
"""

import importlib
import json
import os
import sys

from speed_channel import Channel
from speed_shapes import Shape

# Name: module with `run(shape, channel)`, and Keras backend.
CONTENDERS = {
    "jax": ("speed_ours", "jax"),
    "tensorflow": ("speed_ours", "tensorflow"),
    "torch": ("speed_ours", "torch"),
    "kerashub": ("speed_kerashub", "jax"),
    "kerashub-tensorflow": ("speed_kerashub", "tensorflow"),
    "kerashub-torch": ("speed_kerashub", "torch"),
    "trl": ("speed_trl", "torch"),
    "machine": ("speed_machine", "jax"),
}
BACKENDS = ("jax", "tensorflow", "torch")


def main(name, shape):
    module, backend = CONTENDERS[name]
    channel = Channel()
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    shape = Shape(**json.loads(shape))
    importlib.import_module(module).run(shape, channel)


if __name__ == "__main__":
    main(*sys.argv[1:])
