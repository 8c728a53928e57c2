"""Export of trained policies: TensorFlow Serving, presets, safetensors."""

from keras_bond.export.adapters import save_adapters
from keras_bond.export.presets import save_preset
from keras_bond.export.presets import save_safetensors
from keras_bond.export.saved_model import export_saved_model
from keras_bond.export.saved_model import verify_saved_model

__all__ = [
    "export_saved_model",
    "save_adapters",
    "save_preset",
    "save_safetensors",
    "verify_saved_model",
]
