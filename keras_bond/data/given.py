"""Completions that the data give, in the place of samples of the anchor."""

import dataclasses

import numpy as np

from keras_bond.data import lengths
from keras_bond.data.sources import plain_column
from keras_bond.data.table import COMPLETION_NAMES
from keras_bond.data.table import REWARDS
from keras_bond.data.table import as_token_ids
from keras_bond.data.table import check_unicode
from keras_bond.rewards.scores import check_scores
from keras_bond.turns import check_content
from keras_bond.turns import is_answer
from keras_bond.turns import is_chat

TEXTS, TOKEN_IDS = COMPLETION_NAMES
# Named as an entry of a batch.
GIVEN_IDS = "given_ids"


class GivenReader:
    """Reads completions that the data give, a list for each prompt.

    The columns are `completions`, str or conversations of one turn of the
    assistant; `completion_ids`, lists of int; or both. `rewards` is optional.

    Args:
        encoder: the `PromptEncoder` of the prompts.
        stop_token_ids: tuple of int. Tokens that end a completion.
        max_completion_length: int. Tokens of a completion, at most.
        least: int. Completions that each prompt must have.
        retokenize: bool. Whether a text that is not what its tokens say is
            accepted, as what they say.
    """

    def __init__(
        self,
        encoder,
        stop_token_ids,
        max_completion_length,
        least=1,
        retokenize=False,
    ):
        self.tokenizer = encoder.tokenizer
        self.vocabulary_size = encoder.vocabulary_size
        self.stop_token_ids = tuple(stop_token_ids)
        self.max_completion_length = max_completion_length
        self.least = least
        self.retokenize = retokenize

    def read(self, table):
        """Checks the given completions of prompts, and tokenizes texts.

        Args:
            table: a `PromptTable` with token ids.

        Returns:
            the `PromptTable` with arrays for each prompt: `completion_ids`
            int32 `(k, max_completion_length)`, 0 after the stop token; and
            `rewards`, if they are given, float64 `(k,)`, NaN for completions
            without one.

        Raises:
            TypeError, ValueError: naming the prompt whose completions are no
                samples that the trainer could have drawn.
        """
        given = {
            name: plain_column(column, table.origin)
            for name, column in table.given.items()
        }
        if len(table) == 0:
            return table
        for i in range(len(table)):
            entries = {name: column[i] for name, column in given.items()}
            first = {name: column[0] for name, column in given.items()}
            with table.origin.naming(i):
                self._check_counts(entries, first)
        texts = self._texts(given, table.origin)
        token_ids = given.get(TOKEN_IDS)
        if token_ids is None:
            token_ids = self._encode(texts, table.token_ids)
        arrays = {TOKEN_IDS: self._fit(token_ids, table.origin)}
        if texts is not None and not self.retokenize:
            self._check_same(texts, arrays[TOKEN_IDS], table.origin)
        if REWARDS in given:
            arrays[REWARDS] = _rewards(given[REWARDS], table.origin)
        return dataclasses.replace(table, given=arrays)

    def to_arrays(self, given):
        """Returns the entries of a batch for the completions of its prompts.

        Args:
            given: dict of lists of arrays, see `read`.

        Returns:
            dict with `given_ids` int32 `(prompts, k, max_completion_length)`.
        """
        return {GIVEN_IDS: np.stack(given[TOKEN_IDS])}

    def _check_counts(self, entries, first):
        """Checks the lists of one prompt against those of the first."""
        for name, values in entries.items():
            if not isinstance(values, list) or is_chat(values):
                raise TypeError(
                    f"`{name}` must have a list for each prompt, with an entry "
                    "for each of its given completions; if the column is "
                    "something else, rename it. Received: "
                    f"{name}={values!r}"
                )
        counts = {name: len(values) for name, values in entries.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                "Given completions must have one text, one list of token ids "
                f"and one reward each. Received: {counts}"
            )
        count, of_first = (
            len(next(iter(x.values()))) for x in (entries, first)
        )
        if count < self.least:
            raise ValueError(
                f"A prompt must have at least {self.least} given completions, "
                "from which the best is picked: leave it out, or distill a "
                f"smaller `best_of_n`. Received: {count} completions"
            )
        if count != of_first:
            raise ValueError(
                "All prompts must have the same number of given completions: "
                "leave out what is too many at random, not by reward. "
                f"Received: {count} completions, {of_first} of the first prompt"
            )

    def _texts(self, given, origin):
        """The given texts as lists of str, `None` if there are ids only."""
        if TEXTS not in given:
            return None
        if self.tokenizer is None:
            raise ValueError(
                "`policy` has no tokenizer, so completions must be given as "
                f"`{TOKEN_IDS}`. Received: `{TEXTS}`"
            )
        texts = []
        for i, entries in enumerate(given[TEXTS]):
            with origin.naming(i):
                texts.append([_text(entry) for entry in entries])
        return texts

    def _encode(self, texts, prompt_ids):
        """Tokenizes texts, and ends those that were not truncated."""
        flat = [text for entries in texts for text in entries]
        encoded = iter(self.tokenizer.encode_bare(flat))
        token_ids = []
        for entries, prompt in zip(texts, prompt_ids):
            ids = [next(encoded) for _ in entries]
            token_ids.append([self._ended(x, prompt) for x in ids])
        return token_ids

    def _ended(self, ids, prompt_ids):
        if len(ids) >= self.max_completion_length:
            return ids
        return [*ids, *self._stop_token(prompt_ids)]

    def _stop_token(self, prompt_ids):
        """The stop token that engines leave out of the text of an answer.

        It ends a turn if one of the prompt's turns ends so.
        """
        if len(self.stop_token_ids) == 1:
            return self.stop_token_ids
        turn = self.tokenizer.end_of_turn_token_id()
        end = self.tokenizer.tokenizer.end_token_id
        chosen = (turn, end) if turn in prompt_ids else (end,)
        return [token for token in chosen if token in self.stop_token_ids][:1]

    def _fit(self, token_ids, origin):
        """Pads the token ids of each prompt to an array."""
        arrays = []
        for i, entries in enumerate(token_ids):
            ended = []
            for j, ids in enumerate(entries):
                with origin.naming(i):
                    ended.append(self._cut(ids, f"completion {j}"))
            padded = lengths.pad(ended, self.max_completion_length)
            arrays.append(padded["token_ids"])
        return arrays

    def _cut(self, ids, name):
        """Removes padding after a completion, which must be a whole one."""
        ids = as_token_ids(TOKEN_IDS, ids, name)
        lengths.check_ids(ids, self.vocabulary_size, name)
        tokenizer = self.tokenizer and self.tokenizer.tokenizer
        padding = getattr(tokenizer, "pad_token_id", None)
        stops = [n for n, i in enumerate(ids) if i in self.stop_token_ids]
        if stops:
            rest = {*ids[stops[0] + 1 :]} - {*self.stop_token_ids}
            if rest - {0 if padding is None else padding}:
                raise ValueError(
                    "A given completion must end with its first stop token, "
                    "where drawing ends: cut it there before it is scored, or "
                    "pass other `stop_token_ids` to the trainer. Received: "
                    f"{name} with {len(ids)} tokens, a stop token at "
                    f"{stops[0]}"
                )
            ids = ids[: stops[0] + 1]
        else:
            while ids and ids[-1] == padding:
                ids = ids[:-1]
        if len(ids) > self.max_completion_length:
            raise ValueError(
                "A given completion must fit into `max_completion_length` "
                "tokens, its stop token included: raise it, or cut completions "
                "there before they are scored. Received: "
                f"{name} with {len(ids)} tokens, max_completion_length="
                f"{self.max_completion_length}"
            )
        if not stops and len(ids) < self.max_completion_length:
            raise ValueError(
                "A given completion must end with a stop token unless it has "
                "`max_completion_length` tokens, where drawing ends: append "
                "the stop token where the engine left it out, and set "
                "`max_completion_length` to the limit of the engine. Received: "
                f"{name} with {len(ids)} tokens and none of stop_token_ids="
                f"{self.stop_token_ids}, max_completion_length="
                f"{self.max_completion_length}"
            )
        return ids

    def _check_same(self, texts, arrays, origin):
        """Raises an error if texts are not what their tokens say."""
        flat = [self._kept(ids) for array in arrays for ids in array.tolist()]
        said = iter(self.tokenizer.decode(flat))
        for i, entries in enumerate(texts):
            for j, (text, says) in enumerate(zip(entries, said)):
                if text == says:
                    continue
                raise ValueError(
                    "The text of a given completion must be what its tokens "
                    "say, or another text is learned than was scored: pass "
                    f"`{TOKEN_IDS}` instead, or retokenize=True to the trainer "
                    "to accept what the tokens say. Received: completion "
                    f"{j}, {text[:80]!r}, whose tokens say {says[:80]!r}, in "
                    f"{origin.name(i)}"
                )

    def _kept(self, ids):
        stops = (n for n, i in enumerate(ids) if i in self.stop_token_ids)
        return ids[: next(stops, len(ids))]


def _text(entry):
    if is_chat(entry) and len(entry) == 1 and is_answer(entry[0]):
        check_content(entry[0])
        entry = entry[0]["content"]
    if not isinstance(entry, str):
        raise TypeError(
            f"`{TEXTS}` must hold strings, or lists with one turn of the "
            f"assistant. Received: {entry!r} of type {type(entry).__name__}"
        )
    check_unicode(entry)
    return entry


def _rewards(column, origin):
    rewards = []
    for i, values in enumerate(column):
        with origin.naming(i):
            rewards.append(check_scores(values, REWARDS, len(values)))
    return rewards


def check_whole(token_ids, max_prompt_length, origin):
    """Raises an error if a prompt with given completions would be truncated.

    Raises:
        ValueError: naming the prompt.
    """
    for i, ids in enumerate(token_ids):
        if len(ids) > max_prompt_length:
            raise ValueError(
                "A prompt with given completions must not be truncated, as "
                "they were drawn from the whole of it: raise "
                f"`max_prompt_length`. Received: {origin.name(i)} with "
                f"{len(ids)} tokens, max_prompt_length={max_prompt_length}"
            )


def check_usable(given, reader):
    """Raises an error if completions are given where none can be used.

    Args:
        given: dict, see `PromptTable`.
        reader: a `GivenReader`, or `None` where there is no use for them.

    Raises:
        ValueError: saying what to do with the columns.
    """
    if given and reader is None:
        raise ValueError(
            "Completions are given to `fit` and `evaluate` of trainers that "
            "sample an anchor, such as `keras_bond.Bond`: leave the columns "
            "out here, as in {k: data[k] for k in data if k not in "
            f"{tuple(given)}}}, or rename what is meant for the reward. "
            f"Received: columns {sorted(given)}"
        )
