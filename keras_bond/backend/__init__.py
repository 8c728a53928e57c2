"""Backend-specific code; no other package imports jax, tensorflow or torch.

There is one module per backend, and all of them define the same names:

- `StagedTrainer`: mixin for `keras.Model` whose `train_step` runs rollout,
  rewards and learning as separately compiled stages, see `step.Step`.
- `all_finite`: whether all values of a list of tensors are finite.
- `Pace`: wall time and tokens of training steps.
- `global_norm`: Euclidean norm of a list of tensors.
- `decode_loop`: the loop over the tokens of a completion.
- `rematerialize`, `map_parts`: recomputation in the backward pass, which trades
  time for memory.
- `prefers_flat_products`: whether dense layers are faster with one token axis.
- `compile_forward`: compiles a gradient-free call of a Keras model.
- `device_memory`: name and memory of the device.
- `learning_memory`: the compiler's estimate of the memory of a learning stage.
- `foreign_strategy`: name of a distribution strategy other than Keras's.

`check_distributes` raises an error on a backend without `keras.distribution`.

`devices` describes the placement of rows and variables on devices.
"""

import keras

from keras_bond.backend.hidden_tensorflow import hide_accelerators
from keras_bond.backend.pace import Pace
from keras_bond.backend.step import all_finite
from keras_bond.backend.step import global_norm

name = keras.config.backend()

if name != "tensorflow":
    hide_accelerators()

if name == "jax":
    from keras_bond.backend import many_devices as devices
    from keras_bond.backend.jax import StagedTrainer
    from keras_bond.backend.jax import compile_forward
    from keras_bond.backend.jax import device_memory
    from keras_bond.backend.jax import foreign_strategy
    from keras_bond.backend.jax import learning_memory
    from keras_bond.backend.jax import map_parts
    from keras_bond.backend.jax import prefers_flat_products
    from keras_bond.backend.jax import rematerialize
    from keras_bond.backend.xla import decode_loop
elif name == "tensorflow":
    from keras_bond.backend import one_device as devices
    from keras_bond.backend.tensorflow import StagedTrainer
    from keras_bond.backend.tensorflow import compile_forward
    from keras_bond.backend.tensorflow import device_memory
    from keras_bond.backend.tensorflow import foreign_strategy
    from keras_bond.backend.tensorflow import learning_memory
    from keras_bond.backend.tensorflow import map_parts
    from keras_bond.backend.tensorflow import prefers_flat_products
    from keras_bond.backend.tensorflow import rematerialize
    from keras_bond.backend.xla import decode_loop
elif name == "torch":
    from keras_bond.backend import one_device as devices
    from keras_bond.backend.torch import StagedTrainer
    from keras_bond.backend.torch import compile_forward
    from keras_bond.backend.torch import decode_loop
    from keras_bond.backend.torch import device_memory
    from keras_bond.backend.torch import foreign_strategy
    from keras_bond.backend.torch import learning_memory
    from keras_bond.backend.torch import map_parts
    from keras_bond.backend.torch import prefers_flat_products
    from keras_bond.backend.torch import rematerialize
else:
    raise ImportError(
        "keras_bond runs on the JAX, TensorFlow and PyTorch backends of Keras: "
        'set KERAS_BACKEND to "jax", "tensorflow" or "torch" before importing '
        f"keras. Received: KERAS_BACKEND={name!r}"
    )

__all__ = [
    "Pace",
    "StagedTrainer",
    "all_finite",
    "check_distributes",
    "compile_forward",
    "decode_loop",
    "device_memory",
    "devices",
    "foreign_strategy",
    "global_norm",
    "learning_memory",
    "map_parts",
    "name",
    "prefers_flat_products",
    "rematerialize",
]


def check_distributes(received):
    """Raises an error if Keras does not distribute training on this backend.

    Args:
        received: str. What was asked for, for the message.

    Raises:
        ValueError: if the backend is not JAX.
    """
    if name != "jax":
        raise ValueError(
            "Keras distributes training on the JAX backend only: set "
            'KERAS_BACKEND="jax" before importing keras, or train on one '
            "device, after `keras.distribution.set_distribution(None)`. "
            f"Received: {received}, the {name} backend"
        )
