"""Byte-pair tokenizers in terms of what TensorFlow's graphs can compute."""

import json
import re

# A noncharacter of Unicode, between the pieces of a text.
BREAK = "\U0010ffff"
# `\s` of the library `tokenizers`; that of TensorFlow is ASCII only.
SPACES = (
    r"\t\n\x0b\f\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}"
    r"\x{202f}\x{205f}\x{3000}"
)
LOOKAHEAD = r"\s+(?!\S)"
GPT_2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)


def graph_spec(tokenizer):
    """Describes a byte-pair tokenizer for `serving.byte_pair.GraphBytePair`.

    Args:
        tokenizer: a byte-pair tokenizer of KerasHub.

    Returns:
        dict that can be written as JSON.

    Raises:
        ValueError: naming the part that does not run in a graph.
    """
    spec = json.loads(tokenizer._tokenizer.to_str())
    model = spec["model"]
    _check(model["type"] == "BPE", f"the model {model['type']}")
    for name in ("byte_fallback", "dropout", "unk_token"):
        _check(not model.get(name), f"{name}={model.get(name)}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        _check(not model.get(name), f"{name}={model.get(name)!r}")
    for token in spec["added_tokens"]:
        for name in ("lstrip", "rstrip", "single_word"):
            _check(not token[name], f"{name} of {token['content']!r}")
    steps = _steps(spec["pre_tokenizer"])
    _check(
        bool(steps) and steps[-1]["type"] == "ByteLevel",
        "a split that does not end with bytes",
    )
    merges = [
        m.split(" ") if isinstance(m, str) else m for m in model["merges"]
    ]
    vocabulary = model["vocab"]
    return {
        "normalization": _normalization(spec["normalizer"]),
        "patterns": [p for step in steps for p in _patterns(step)],
        "vocabulary": vocabulary,
        "merges": [
            [vocabulary[a], vocabulary[b], vocabulary[a + b]] for a, b in merges
        ],
        "whole_words": bool(model.get("ignore_merges")),
        "added_tokens": {x["content"]: x["id"] for x in spec["added_tokens"]},
    }


def _normalization(normalizer):
    """ "NFC" and the like, or `None`."""
    if normalizer is None:
        return None
    name = normalizer["type"]
    _check(name in ("NFC", "NFD", "NFKC", "NFKD"), f"the normalizer {name}")
    return name


def _steps(pre_tokenizer):
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        parts = pre_tokenizer["pretokenizers"]
        return [step for part in parts for step in _steps(part)]
    return [pre_tokenizer]


def _patterns(step):
    """`(look, pattern)`: where to break before a last space, and what to find.

    TensorFlow's regular expressions cannot look ahead. Nearly all tokenizers do
    so once, to leave the last space of several to the word that follows: there
    is a break before it.
    """
    kind = step["type"]
    if kind == "ByteLevel":
        _check(not step["add_prefix_space"], "add_prefix_space")
        return [_translated(GPT_2)] if step["use_regex"] else []
    if kind == "Digits":
        return [["", r"\p{N}" if step["individual_digits"] else r"\p{N}+"]]
    _check(kind == "Split", f"the split {kind}")
    isolates = step["behavior"] == "Isolated" and not step["invert"]
    keeps = step["behavior"] == "Removed" and step["invert"]
    _check(isolates or keeps, f"the split {step['behavior']}")
    pattern = step["pattern"]
    if "String" in pattern:
        return [["", re.escape(pattern["String"])]]
    return [_translated(pattern["Regex"])]


def _translated(pattern):
    look = ""
    if f"{LOOKAHEAD}|" in pattern:
        pattern = pattern.replace(f"{LOOKAHEAD}|", "")
        # Line ends stay together in newer models.
        before = rf"[{SPACES}]"
        if r"[\r\n" in pattern:
            before = rf"[{SPACES}]".replace(r"\n", "").replace(r"\r", "")
        look = f"({before})([^{SPACES}{BREAK}])"
    for name in ("(?=", "(?!", "(?<", "(?>", "++", "*+", "?+"):
        _check(name not in pattern, f"{name} in {pattern}")
    return [look, _with_spaces(pattern)]


def _with_spaces(pattern):
    """Writes out `\\s`, and keeps breaks out of everything that is negated."""
    found, inside = "", False
    parts = re.findall(r"\\.|\[\^|\[|\]|.", pattern, flags=re.DOTALL)
    for part in parts:
        if part == r"\s":
            part = SPACES if inside else f"[{SPACES}]"
        elif part == r"\S":
            _check(not inside, r"\S within a class")
            part = f"[^{SPACES}{BREAK}]"
        elif part == "[^":
            part = f"[^{BREAK}"
        if part.startswith("[") and part != SPACES and not part.endswith("]"):
            inside = True
        elif part == "]":
            inside = False
        found += part
    return found


def _check(is_supported, name):
    if not is_supported:
        raise ValueError(
            "The tokenizer has a part that does not run in a TensorFlow graph. "
            f"Received: {name}"
        )
