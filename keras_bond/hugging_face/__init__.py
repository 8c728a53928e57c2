"""Folders of Hugging Face Transformers."""

import keras

from keras_bond.hugging_face.load import load_hugging_face
from keras_bond.hugging_face.load import load_tokenizer

__all__ = ["load_hugging_face", "load_tokenizer"]


class _FolderTokenizer:
    """What Keras finds when it loads a model with a `FolderTokenizer`.

    The class itself is a subclass of KerasHub's, which takes seconds to import.
    """

    @classmethod
    def from_config(cls, config):
        from keras_bond.hugging_face import byte_pair

        return byte_pair.FolderTokenizer.from_config(config)


keras.saving.get_custom_objects()["keras_bond>FolderTokenizer"] = (
    _FolderTokenizer
)
