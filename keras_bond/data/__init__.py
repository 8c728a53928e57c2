"""Prompts and preference pairs from files, tables and data sets."""

from keras_bond.data.chat import render_chat
from keras_bond.data.chat_templates import read_chat_template
from keras_bond.data.jsonl import read_jsonl
from keras_bond.data.preferences import to_pairs
from keras_bond.data.selection import informative
from keras_bond.data.sources import prompts_from

__all__ = [
    "informative",
    "prompts_from",
    "read_chat_template",
    "read_jsonl",
    "render_chat",
    "to_pairs",
]
