"""The only place that may import jax, tensorflow or torch.

One module a backend, with the same names in each:

- `StagedTrainer`: a mix-in before `keras.Model` whose `train_step` runs
  rollout, rewards and learning as separately compiled stages, see `step.Step`.
- `all_finite`: whether all values of some tensors are finite.
- `decode_loop`: the loop over the tokens of a completion.
- `rematerialize`, `map_parts`: memory for computation, in the backward pass.
- `prefers_flat_products`: whether dense layers had better see one axis of
  tokens.
- `compile_forward`: a compiled, gradient-free call of a Keras model.
- `device_memory`: which device computes, and how many bytes it has.
- `learning_memory`: what the compiler says that learning from a batch takes.
- `foreign_strategy`: what distributes this process, if Keras does not.

And `devices`: where rows and variables live, on many devices or one.
"""

import keras

from keras_bond.backend.step import all_finite

name = keras.config.backend()

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
    "StagedTrainer",
    "all_finite",
    "compile_forward",
    "decode_loop",
    "device_memory",
    "devices",
    "foreign_strategy",
    "learning_memory",
    "map_parts",
    "name",
    "prefers_flat_products",
    "rematerialize",
]
