"""The only place that may import jax, tensorflow or torch.

One module a backend, with the same names in each:

- `StagedTrainer`: a mix-in before `keras.Model` whose `train_step` runs
  rollout, rewards and learning as separately compiled stages.
- `decode_loop`: the loop over the tokens of a completion.
- `rematerialize`, `map_parts`: memory for computation, in the backward pass.
- `prefers_flat_products`: whether dense layers had better see one axis of
  tokens.
- `compile_forward`: a compiled, gradient-free call of a Keras model.
- `device_memory`: which device computes, and how many bytes it has.
- `own_rows`, `to_device`, `to_host`, `spread`, `gathered`: rows of a batch,
  between processes and devices; `layout_of`, `num_devices` and `is_split`:
  variables there; `num_replicas`, `num_processes`, `process_index`,
  `wait_for_all`, `foreign_strategy`: who takes part.
"""

import keras

name = keras.config.backend()

if name == "jax":
    from keras_bond.backend.devices import wait_for_all
    from keras_bond.backend.devices import to_host
    from keras_bond.backend.devices import to_device
    from keras_bond.backend.devices import spread
    from keras_bond.backend.devices import process_index
    from keras_bond.backend.devices import own_rows
    from keras_bond.backend.devices import num_replicas
    from keras_bond.backend.devices import num_processes
    from keras_bond.backend.devices import num_devices
    from keras_bond.backend.devices import layout_of
    from keras_bond.backend.devices import is_split
    from keras_bond.backend.devices import gathered
    from keras_bond.backend.devices import foreign_strategy
    from keras_bond.backend.jax import StagedTrainer
    from keras_bond.backend.jax import compile_forward
    from keras_bond.backend.jax import device_memory
    from keras_bond.backend.jax import map_parts
    from keras_bond.backend.jax import prefers_flat_products
    from keras_bond.backend.jax import rematerialize
    from keras_bond.backend.xla import decode_loop
elif name == "tensorflow":
    from keras_bond.backend.one_device import wait_for_all
    from keras_bond.backend.one_device import to_host
    from keras_bond.backend.one_device import to_device
    from keras_bond.backend.one_device import spread
    from keras_bond.backend.one_device import process_index
    from keras_bond.backend.one_device import own_rows
    from keras_bond.backend.one_device import num_replicas
    from keras_bond.backend.one_device import num_processes
    from keras_bond.backend.one_device import num_devices
    from keras_bond.backend.one_device import layout_of
    from keras_bond.backend.one_device import is_split
    from keras_bond.backend.one_device import gathered
    from keras_bond.backend.tensorflow import foreign_strategy
    from keras_bond.backend.tensorflow import StagedTrainer
    from keras_bond.backend.tensorflow import compile_forward
    from keras_bond.backend.tensorflow import device_memory
    from keras_bond.backend.tensorflow import map_parts
    from keras_bond.backend.tensorflow import prefers_flat_products
    from keras_bond.backend.tensorflow import rematerialize
    from keras_bond.backend.xla import decode_loop
elif name == "torch":
    from keras_bond.backend.one_device import wait_for_all
    from keras_bond.backend.one_device import to_host
    from keras_bond.backend.one_device import to_device
    from keras_bond.backend.one_device import spread
    from keras_bond.backend.one_device import process_index
    from keras_bond.backend.one_device import own_rows
    from keras_bond.backend.one_device import num_replicas
    from keras_bond.backend.one_device import num_processes
    from keras_bond.backend.one_device import num_devices
    from keras_bond.backend.one_device import layout_of
    from keras_bond.backend.one_device import is_split
    from keras_bond.backend.one_device import gathered
    from keras_bond.backend.torch import foreign_strategy
    from keras_bond.backend.torch import StagedTrainer
    from keras_bond.backend.torch import compile_forward
    from keras_bond.backend.torch import decode_loop
    from keras_bond.backend.torch import device_memory
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
    "foreign_strategy",
    "gathered",
    "is_split",
    "layout_of",
    "num_devices",
    "num_processes",
    "num_replicas",
    "own_rows",
    "process_index",
    "spread",
    "to_device",
    "to_host",
    "wait_for_all",
    "StagedTrainer",
    "compile_forward",
    "decode_loop",
    "device_memory",
    "map_parts",
    "name",
    "prefers_flat_products",
    "rematerialize",
]
