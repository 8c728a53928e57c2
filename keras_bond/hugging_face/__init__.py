"""Folders of Hugging Face Transformers."""

import importlib

import keras

from keras_bond.hugging_face.load import load_hugging_face
from keras_bond.hugging_face.load import load_tokenizer

__all__ = ["load_hugging_face", "load_tokenizer"]


class _Tokenizer:
    """What Keras finds when it loads a model with a tokenizer of a folder.

    The class itself is a subclass of KerasHub's, which takes seconds to import.
    """

    def __init__(self, module, name):
        self._module = f"{__name__}.{module}"
        self._name = name

    def from_config(self, config):
        module = importlib.import_module(self._module)
        return getattr(module, self._name).from_config(config)


for _module, _names in {
    "byte_pair": ("FolderTokenizer",),
    "sentence_piece": (
        "GemmaTokenizer",
        "Gemma3Tokenizer",
        "MistralTokenizer",
        "MixtralTokenizer",
    ),
}.items():
    for _name in _names:
        keras.saving.get_custom_objects()[f"keras_bond>{_name}"] = _Tokenizer(
            _module, _name
        )
