"""Splits Gemma's weights over devices."""

import keras

from keras_bond.distribution.layouts import split_axis


class ModelParallel(keras.distribution.ModelParallel):
    """Spreads a batch and the weights of a Gemma or Gemma 3 over a mesh.

    A `keras.distribution.ModelParallel` that needs no layout map: it knows
    which variables of Gemma, Gemma 2 and Gemma 3 to split, LoRA adapters
    included, and sees their shapes, so that a model with fewer heads than
    devices is split along another axis. Anchor, reference and optimizer of a
    `keras_bond` trainer live where their variable does. Use it when a model is
    too large for one device; else `keras.distribution.DataParallel()` is
    faster. Needs the JAX backend.

    Other families: `keras.distribution.ModelParallel` with the layout map of
    their KerasHub backbone, such as `LlamaBackbone.get_layout_map(mesh)`.

    Args:
        device_mesh: `keras.distribution.DeviceMesh` with two axes: over the
            first the rows of a batch are spread, over the second the weights.

    Raises:
        TypeError: if `device_mesh` is no `DeviceMesh`.
        ValueError: if it has not two axes, or the backend is not JAX.

    Example:

    ```python
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    keras.distribution.set_distribution(
        keras_bond.distribution.ModelParallel(mesh)
    )
    policy = keras_hub.models.Gemma3CausalLM.from_preset(
        "gemma3_instruct_4b_text"
    )
    policy.backbone.enable_lora(8)
    bond = keras_bond.JBond(policy, reward, ...)
    ```
    """

    def __init__(self, device_mesh):
        _check(device_mesh)
        super().__init__(
            layout_map=keras.distribution.LayoutMap(device_mesh),
            batch_dim_name=device_mesh.axis_names[0],
        )

    def get_variable_layout(self, variable):
        """Where a variable lives: a `keras.distribution.TensorLayout`."""
        if getattr(variable, "_layout", None) is not None:
            return variable._layout
        axes = [None] * len(variable.shape)
        num_devices = self.device_mesh.shape[1]
        axis = split_axis(variable.path, variable.shape, num_devices)
        if axis is not None:
            axes[axis] = self.device_mesh.axis_names[1]
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _check(device_mesh):
    if keras.config.backend() != "jax":
        raise ValueError(
            "Keras distributes training on the JAX backend only: set "
            'KERAS_BACKEND="jax" before importing keras. '
            f"Received: the {keras.config.backend()} backend"
        )
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise TypeError(
            "`device_mesh` must be a `keras.distribution.DeviceMesh`, such as "
            '`DeviceMesh((2, 4), ("batch", "model"))`. Received: '
            f"device_mesh={device_mesh!r} of type {type(device_mesh).__name__}"
        )
    if len(device_mesh.shape) != 2:
        raise ValueError(
            "`device_mesh` must have two axes, one for the rows of a batch "
            "and one for the weights; use (1, devices) or (devices, 1) for "
            "one of them alone. "
            f"Received: device_mesh.shape={device_mesh.shape}"
        )
