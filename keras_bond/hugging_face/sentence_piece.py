"""SentencePiece tokenizers of Hugging Face folders, with a chat template.

This module imports KerasHub, which takes seconds, so it is imported when a
folder or a saved model with such a tokenizer is loaded.
"""

import keras
import keras_hub


class ChatTemplate:
    """Mixin for a KerasHub tokenizer that saves its chat template.

    The class has the name of KerasHub's, by which `export_to_transformers`
    knows what to write. Loading it needs `import keras_bond`.

    Attributes:
        chat_template: str. Jinja template of conversations.
    """

    chat_template = None
    # Of a backbone, KerasHub takes the first tokenizer that it finds.
    backbone_cls = None

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        chat_template = config.pop("chat_template")
        tokenizer = super().from_config(config)
        tokenizer.chat_template = chat_template
        return tokenizer

    def get_config(self):
        return {**super().get_config(), "chat_template": self.chat_template}


@keras.saving.register_keras_serializable(package="keras_bond")
class GemmaTokenizer(ChatTemplate, keras_hub.models.GemmaTokenizer):
    """That of Gemma 1 and 2."""


@keras.saving.register_keras_serializable(package="keras_bond")
class Gemma3Tokenizer(ChatTemplate, keras_hub.models.Gemma3Tokenizer):
    """That of Gemma 3."""


@keras.saving.register_keras_serializable(package="keras_bond")
class MistralTokenizer(ChatTemplate, keras_hub.models.MistralTokenizer):
    """That of Mistral."""


@keras.saving.register_keras_serializable(package="keras_bond")
class MixtralTokenizer(ChatTemplate, keras_hub.models.MixtralTokenizer):
    """That of Mixtral."""


# By `model_type`. Of several tokenizers of a backbone, as Mistral's is one that
# reads SentencePiece and one that does not, KerasHub takes any (`find_subclass`
# in keras_hub/src/utils/preset_utils.py looks into a set).
CLASSES = {
    "gemma": GemmaTokenizer,
    "gemma2": GemmaTokenizer,
    "gemma3": Gemma3Tokenizer,
    "gemma3_text": Gemma3Tokenizer,
    "mistral": MistralTokenizer,
    "mixtral": MixtralTokenizer,
}


def load(folder, family, chat_template):
    """Returns KerasHub's tokenizer of a folder, with a chat template.

    Args:
        folder: str or path. Folder with `config.json` and `tokenizer.model`.
        family: str. `model_type` of `config.json`, one of `CLASSES`.
        chat_template: str. Jinja template, or `None`.
    """
    kind = CLASSES[family]
    of_keras_hub = getattr(keras_hub.models, kind.__name__)
    tokenizer = of_keras_hub.from_preset(str(folder))
    if chat_template is None:
        return tokenizer
    config = {**tokenizer.get_config(), "chat_template": chat_template}
    copy = kind.from_config(config)
    copy.set_proto(tokenizer.proto)
    return copy
