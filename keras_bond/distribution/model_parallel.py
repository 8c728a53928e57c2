"""Model parallelism without a layout map."""

import keras

from keras_bond import backend
from keras_bond.distribution.layouts import split_axis


class ModelParallel(keras.distribution.ModelParallel):
    """Shards batches and the weights of a Gemma model over a device mesh.

    This is a `keras.distribution.ModelParallel` that does not need a layout
    map. It knows which variables of Gemma, Gemma 2 and Gemma 3 to shard,
    including LoRA adapters. It takes their shapes into account, so that a model
    with fewer heads than devices is sharded along another axis. The anchor,
    reference and optimizer variables of a `keras_bond` trainer have the layout
    of the variable that they belong to. Use it if a model is too large for one
    device; otherwise `keras.distribution.DataParallel()` is faster. It needs
    the JAX backend.

    For other families use `keras.distribution.ModelParallel` with the layout
    map of their KerasHub backbone, such as
    `LlamaBackbone.get_layout_map(mesh)`.

    Args:
        device_mesh: `keras.distribution.DeviceMesh` with two axes. The rows of
            a batch are sharded over the first, the weights over the second.

    Raises:
        TypeError: if `device_mesh` is not a `DeviceMesh`.
        ValueError: if it does not have two axes, or the backend is not JAX.

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
        """Returns the `keras.distribution.TensorLayout` of a variable."""
        if getattr(variable, "_layout", None) is not None:
            return variable._layout
        axes = [None] * len(variable.shape)
        num_devices = self.device_mesh.shape[1]
        axis = split_axis(variable.path, variable.shape, num_devices)
        if axis is not None:
            axes[axis] = self.device_mesh.axis_names[1]
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _check(device_mesh):
    backend.check_distributes("ModelParallel")
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise TypeError(
            "`device_mesh` must be a `keras.distribution.DeviceMesh`, such as "
            '`DeviceMesh((2, 4), ("batch", "model"))`. Received: '
            f"device_mesh={device_mesh!r} of type {type(device_mesh).__name__}"
        )
    if len(device_mesh.shape) != 2:
        raise ValueError(
            "`device_mesh` must have two axes, one for the rows of a batch "
            "and one for the weights; use (1, devices) or (devices, 1) to "
            "shard only one of them. "
            f"Received: device_mesh.shape={device_mesh.shape}"
        )
