"""Configs of KerasHub's models that are complete enough to load them again.

Some of KerasHub's classes leave arguments out of their `get_config`, such as
Llama's tied embeddings and special tokens. What is saved from that config looks
complete, and cannot be loaded or computes something else.
"""

import collections
import contextlib
import inspect
import weakref

import keras

from keras_bond.rollouts import network

# Saving checks a model once, as a copy of its layers takes a second or more.
_checked = weakref.WeakSet()


def serialize(saveable):
    """Returns the config of a Keras object with all arguments of its parts.

    Args:
        saveable: a Keras object, or `None`, whose config is `None`.
    """
    if saveable is None:
        return None
    with complete(saveable):
        return keras.saving.serialize_keras_object(saveable)


@contextlib.contextmanager
def complete(model):
    """Returns a context in which KerasHub's parts have a whole `get_config`.

    Args:
        model: `keras.Layer`, a backbone or tokenizer or a model with them.
    """
    parts = [part for part in _parts(model) if _missing(part)]
    for part in parts:
        config = {**part.get_config(), **_missing(part)}
        # `keras.Layer.__setattr__` would track the config.
        object.__setattr__(part, "get_config", lambda config=config: config)
    try:
        yield
    finally:
        for part in parts:
            object.__delattr__(part, "get_config")


def check(model):
    """Raises an error if a model could not be loaded after it is saved.

    Args:
        model: `keras.Model` with a KerasHub backbone.

    Raises:
        ValueError: naming the backbone or tokenizer, and what would be lost.
    """
    for part in _parts(model):
        # The tokenizer of a Hugging Face folder is saved as a whole.
        if part in _checked or hasattr(part, "spec"):
            continue
        with complete(part), keras.StatelessScope(initialize_variables=False):
            # Its variables have no values, and take no memory.
            copy = type(part).from_config(part.get_config())
        if network.is_a(part, "Backbone"):
            lost = _difference(_shapes(part), _shapes(copy))
        else:
            lost = _difference(_tokens(part), _tokens(copy))
            lost = lost or _lost_steps(part, copy)
        if lost:
            raise ValueError(
                "A model must be loaded again as it is saved, but KerasHub's "
                f"`{type(part).__name__}.get_config` leaves out what this one "
                "was made with. Load a Hugging Face folder with "
                "`keras_bond.load_hugging_face`, whose parts can be saved. "
                f"Nothing was written. Received: {'; '.join(lost)}"
            )
        _checked.add(part)


def _parts(model):
    """The backbones and tokenizers of KerasHub in a model."""
    layers = list(model._flatten_layers())
    # Tasks do not track their preprocessor.
    found = [getattr(layer, "preprocessor", None) for layer in layers]
    for preprocessor in found:
        if isinstance(preprocessor, keras.Layer):
            layers += preprocessor._flatten_layers()
    parts = {
        id(x): x for x in layers if network.is_a(x, "Backbone", "Tokenizer")
    }
    return list(parts.values())


def _missing(part):
    """Arguments that `get_config` leaves out, from attributes of their name.

    Functions and classes do not count: they are left out where they are the
    default, as in the vision encoder of Gemma 3n.
    """
    config = part.get_config()
    found = {
        name: getattr(part, name)
        for name in inspect.signature(type(part)).parameters
        if name not in (*config, "vocabulary", "merges", "proto", "spec")
        and hasattr(part, name)
        and not callable(getattr(part, name))
    }
    if type(part).__name__ == "Llama3Tokenizer" and "bos_token" not in config:
        found["bos_token"] = part.start_token
        found["eos_token"] = part.end_token
    return found


def _shapes(backbone):
    # Paths have numbers that count the layers of a process.
    return [
        f"{variable.name} {tuple(variable.shape)}"
        for variable in backbone.variables
        if "lora_" not in variable.name
    ]


def _tokens(tokenizer):
    names = getattr(tokenizer, "_special_token_attrs", ())
    names = {*names, "start_token", "end_token"}
    found = {getattr(tokenizer, name, None) for name in names}
    return [f"token {token!r}" for token in found if token is not None]


def _lost_steps(tokenizer, copy):
    """How a byte-pair tokenizer splits texts, if it was changed by hand."""
    library = getattr(tokenizer, "_tokenizer", None)
    if library is None:
        return []
    tokens = {*tokenizer.special_tokens, *(tokenizer.unsplittable_tokens or ())}
    tokens |= {"a", "b", "ab"}
    ids = {token: i for i, token in enumerate(tokens)}
    copy.set_vocabulary_and_merges(ids, ["a b"])
    return [
        f"{name}={str(getattr(library, name))[:200]} (lost)"
        for name in ("normalizer", "pre_tokenizer")
        if str(getattr(library, name)) != str(getattr(copy._tokenizer, name))
    ]


def _difference(saved, loaded):
    saved, loaded = collections.Counter(saved), collections.Counter(loaded)
    lost = [f"{x} (lost)" for x in saved - loaded]
    return lost + [f"{x} (added)" for x in loaded - saved]
