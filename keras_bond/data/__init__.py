"""Prompts from whatever a user has, as batches of token ids."""

from keras_bond.data.columns import to_columns
from keras_bond.data.prompts import PromptBatches
from keras_bond.data.prompts import PromptEncoder
from keras_bond.data.prompts import to_batches
from keras_bond.data.rows import spreadable
from keras_bond.data.streams import PromptStream
from keras_bond.data.text import TextCodec

__all__ = [
    "PromptBatches",
    "PromptEncoder",
    "PromptStream",
    "TextCodec",
    "spreadable",
    "to_batches",
    "to_columns",
]
