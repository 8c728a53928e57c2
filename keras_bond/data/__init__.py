"""Prompts and pairs from whatever a user has, as batches of token ids."""

from keras_bond.data.chat import render_chat
from keras_bond.data.columns import to_columns
from keras_bond.data.preferences import RowEncoder
from keras_bond.data.preferences import encode_pairs
from keras_bond.data.preferences import pad_rows
from keras_bond.data.preferences import to_pairs
from keras_bond.data.prompts import PromptBatches
from keras_bond.data.prompts import PromptEncoder
from keras_bond.data.prompts import to_batches
from keras_bond.data.rows import spreadable
from keras_bond.data.sources import prompts_from
from keras_bond.data.sources import read_jsonl
from keras_bond.data.streams import PromptStream
from keras_bond.data.text import TextCodec
from keras_bond.data.text import same_tokens
from keras_bond.rewards.samples import TURNS

__all__ = [
    "PromptBatches",
    "PromptEncoder",
    "PromptStream",
    "RowEncoder",
    "TURNS",
    "TextCodec",
    "encode_pairs",
    "pad_rows",
    "prompts_from",
    "read_jsonl",
    "render_chat",
    "same_tokens",
    "spreadable",
    "to_batches",
    "to_columns",
    "to_pairs",
]
