"""The tokenizer of a Hugging Face folder as a KerasHub tokenizer.

This module imports KerasHub, which takes seconds, so it is imported when a
folder or a saved model with such a tokenizer is loaded.
"""

import json
import os

import keras
import keras_hub
import tokenizers

ASSET = "tokenizer.json"


@keras.saving.register_keras_serializable(package="keras_bond")
class FolderTokenizer(keras_hub.tokenizers.BytePairTokenizer):
    """Tokenizes with the `tokenizer.json` of a Hugging Face folder.

    KerasHub's own byte-pair tokenizers take vocabulary and merges from that
    file, but split every text as Llama 3 does, know the special tokens of one
    model, and forget them on saving. This one runs the whole file, with the
    library `tokenizers` that Hugging Face Transformers uses. It is saved with
    its model; loading it needs `import keras_bond`.

    Args:
        spec: dict. Content of `tokenizer.json`; `None` for a tokenizer that
            `load_assets` will fill.
        start_token: str. Token before every prompt, `None` for none.
        end_tokens: list of str. Tokens that end a completion.
        pad_token_id: int. Token id of padding. Defaults to 0.
        chat_template: str. Jinja template of conversations, or `None`.
        bos_token: str. What the template knows by this name, also where it is
            not put before every prompt, or `None`.
        **kwargs: arguments of `keras_hub.tokenizers.BytePairTokenizer`.

    Raises:
        ValueError: if the vocabulary does not have a start or end token.
    """

    def __init__(
        self,
        spec=None,
        start_token=None,
        end_tokens=(),
        pad_token_id=0,
        chat_template=None,
        bos_token=None,
        **kwargs,
    ):
        self.start_token = start_token
        self.end_tokens = list(end_tokens)
        self.pad_token_id = pad_token_id
        self.chat_template = chat_template
        self.bos_token = bos_token
        kwargs.pop("unsplittable_tokens", None)
        super().__init__(unsplittable_tokens=[], **kwargs)
        self.file_assets = [ASSET]
        if spec is not None:
            self.set_spec(spec)

    def set_spec(self, spec):
        """Sets the content of `tokenizer.json`."""
        # Start tokens, padding and truncation are the preprocessor's.
        self.spec = {
            **spec,
            "post_processor": None,
            "padding": None,
            "truncation": None,
        }
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self.spec))
        found = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = dict(sorted(found.items(), key=lambda item: item[1]))
        self.merges = [_joined(merge) for merge in spec["model"]["merges"]]
        self._set_special_tokens()

    def _set_special_tokens(self):
        wanted = [self.start_token, *self.end_tokens]
        unknown = {token for token in wanted if token} - set(self.vocabulary)
        if unknown:
            raise ValueError(
                f"The vocabulary of {ASSET} must have the start and end tokens "
                f"of the folder. Received: {sorted(unknown)}, which it lacks"
            )
        ids = [self.vocabulary[token] for token in self.end_tokens]
        self.end_token_ids = ids
        self.end_token, self.end_token_id = self.end_tokens[0], ids[0]
        if len(ids) > 1:
            # The name that `CausalLM.generate` looks for.
            self.end_token2, self.end_token2_id = self.end_tokens[1], ids[1]
        self.start_token_id = self.vocabulary.get(self.start_token)

    @property
    def special_tokens(self):
        """list of str. Tokens that never appear in text."""
        if self.vocabulary is None:
            return []
        added = self.spec.get("added_tokens", [])
        marked = {token["content"] for token in added if token["special"]}
        started = {self.start_token} - {None}
        return sorted(marked | started | set(self.end_tokens))

    @property
    def special_token_ids(self):
        """list of int. The ids of `special_tokens`."""
        return [self.vocabulary[token] for token in self.special_tokens]

    def set_vocabulary_and_merges(self, vocabulary, merges):
        """Clears the vocabulary, which `set_spec` sets."""
        if vocabulary is not None or merges is not None:
            raise ValueError(
                f"A `FolderTokenizer` takes its vocabulary from {ASSET}: pass "
                "its content as `spec`. Received: vocabulary or merges"
            )
        super().set_vocabulary_and_merges(None, None)
        self.spec = None

    def get_vocabulary(self):
        """Returns the tokens, a list of str in the order of their ids."""
        self._check_vocabulary()
        return list(self.vocabulary)

    def _use_tf_workflow(self):
        # KerasHub's graph splits texts in another way.
        if super()._use_tf_workflow():
            raise ValueError(
                "The tokenizer of a Hugging Face folder does not run in a "
                "TensorFlow graph, such as `tf.data.Dataset.map`: tokenize "
                "lists of strings, or map a `grain` data set. Received: a call "
                "within a graph"
            )
        return False

    def save_assets(self, dir_path):
        self._check_vocabulary()
        path = os.path.join(dir_path, ASSET)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.spec, file, ensure_ascii=False)

    def load_assets(self, dir_path):
        path = os.path.join(dir_path, ASSET)
        with open(path, encoding="utf-8") as file:
            self.set_spec(json.load(file))

    def get_config(self):
        config = super().get_config()
        del config["unsplittable_tokens"]
        return {
            **config,
            "start_token": self.start_token,
            "end_tokens": self.end_tokens,
            "pad_token_id": self.pad_token_id,
            "chat_template": self.chat_template,
            "bos_token": self.bos_token,
        }


def _joined(merge):
    return merge if isinstance(merge, str) else " ".join(merge)
