"""Standardization of trainer arguments: defaults and checks."""

import math
import random
import weakref

from keras_bond.arguments import check_count
from keras_bond.arguments import check_list
from keras_bond.arguments import is_count
from keras_bond.data import chat_templates
from keras_bond.data.tokenizer import TextTokenizer

# "auto" keeps a reference up to this fraction of trainable parameters.
FREE_REFERENCE_SHARE = 0.1
# How the trainers of this process read text, by policy; see `text_of`.
_texts = weakref.WeakKeyDictionary()


def seed_of(seed):
    """Returns the seed of a run, which is drawn if `seed` is `None`.

    Raises:
        ValueError: if it is not an integer in [0, 2³¹).
    """
    if seed is None:
        return random.randrange(2**31)
    if not is_count(seed, 0) or seed >= 2**31:
        raise ValueError(
            "`seed` must be an integer in [0, 2**31), or None to draw one. "
            f"Received: seed={seed!r}"
        )
    return seed


def stop_token_ids_of(stop_token_ids, tokenizer, vocabulary_size):
    """Returns the ids that end a completion; "auto" takes the tokenizer's.

    Raises:
        TypeError: if `stop_token_ids` is not a list of token ids.
        ValueError: if it is "auto" and there is not a tokenizer, or an id is
            not in the vocabulary, so that nothing would end a completion.
    """
    if isinstance(stop_token_ids, str):
        stops = _stops_of(tokenizer, stop_token_ids)
    else:
        check_list("stop_token_ids", stop_token_ids, 'token ids, or "auto"')
        stops = [getattr(x, "item", lambda x=x: x)() for x in stop_token_ids]
        for stop in stops:
            check_count("stop_token_ids", stop, 0)
    if any(stop >= vocabulary_size for stop in stops):
        raise ValueError(
            "`stop_token_ids` must be in the vocabulary of the model, in "
            f"[0, {vocabulary_size}), or they never end a completion. "
            f"Received: stop_token_ids={list(stops)}"
        )
    return tuple(stops)


def _stops_of(tokenizer, stop_token_ids):
    if stop_token_ids != "auto":
        raise ValueError(
            '`stop_token_ids` must be "auto" or a list of token ids. '
            f"Received: stop_token_ids={stop_token_ids!r}"
        )
    if tokenizer is None:
        raise ValueError(
            "`stop_token_ids` must be given for a policy without a tokenizer: "
            "pass the ids that end a completion, or () if there are none. "
            'Received: stop_token_ids="auto"'
        )
    return tokenizer.stop_token_ids()


def tokenizer_of(preprocessor, chat_template, backbone):
    """Returns the tokenizer of a model, and its chat template.

    Args:
        preprocessor: KerasHub preprocessor or tokenizer, or `None`.
        chat_template: see `keras_bond.data.render_chat`.
        backbone: KerasHub backbone.

    Returns:
        `(tokenizer, chat_template)`: a `TextTokenizer`, `None` without a
        preprocessor; and `"auto"`, a template in Jinja, or a function.

    Raises:
        ImportError, TypeError, ValueError: if the chat template is wrong.
    """
    if preprocessor is None:
        return None, chat_templates.standardize(chat_template)
    tokenizer = TextTokenizer(preprocessor, chat_template, backbone)
    tokenizer.check_template()
    return tokenizer, tokenizer.chat_template


def remember_text(policy, tokenizer, stop_token_ids):
    """Remembers how a trainer reads text, for the export of its policy."""
    _texts[policy] = (tokenizer, stop_token_ids)


def text_of(policy):
    """How a policy reads text: as its last trainer in this process.

    Returns:
        `(tokenizer, stop_token_ids)`: a `TextTokenizer` and a tuple of int.
    """
    if policy in _texts:
        tokenizer, stops = _texts[policy]
    else:
        tokenizer = TextTokenizer(policy.preprocessor, backbone=policy.backbone)
        stops = ()
    return tokenizer, stops or tokenizer.stop_token_ids()


def prompt_buckets_of(prompt_buckets, max_prompt_length):
    """Returns the lengths to which prompts are padded, shortest first.

    Raises:
        ValueError: if they are not increasing integers that end with
            `max_prompt_length`.
    """
    if prompt_buckets is None:
        return (max_prompt_length,)
    check_list("prompt_buckets", prompt_buckets, "numbers of tokens")
    buckets = tuple(prompt_buckets)
    whole = all(is_count(b, 1) for b in buckets)
    if whole and list(buckets) == sorted(set(buckets)):
        if buckets and buckets[-1] == max_prompt_length:
            return buckets
    raise ValueError(
        "`prompt_buckets` must be increasing numbers of tokens that end with "
        "`max_prompt_length`, so that every prompt fits into a bucket: "
        f"(..., {max_prompt_length}). Received: "
        f"prompt_buckets={prompt_buckets!r}, "
        f"max_prompt_length={max_prompt_length}"
    )


def has_reference(reference, policy):
    """Whether to keep a reference; "auto" does so if it is small."""
    if reference != "auto":
        return reference
    trained = sum(math.prod(v.shape) for v in policy.trainable_variables)
    return trained / policy.count_params() <= FREE_REFERENCE_SHARE
