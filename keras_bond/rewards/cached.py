"""Scores that are saved and returned again, in memory or in a file."""

import dataclasses
import datetime
import hashlib
import numbers
import os
import pathlib
import re
import uuid
import warnings

import keras
import numpy as np

from keras_bond.arguments import shown
from keras_bond.rewards import threads
from keras_bond.rewards.reward import Wrapper
from keras_bond.rewards.scores import RewardTypeError
from keras_bond.rewards.scores import RewardValueError
from keras_bond.rewards.scores import to_python
from keras_bond.rewards.store import ScoreStore
from keras_bond.rewards.text import is_missing

PLAIN = (str, bytes, int, float, type(None))
# Types whose text is their whole value; that of data frames is shortened.
SHOWN = (
    *PLAIN,
    numbers.Number,
    np.generic,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    pathlib.PurePath,
    uuid.UUID,
)
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@keras.saving.register_keras_serializable(package="keras_bond")
class Cached(Wrapper):
    """Calls a reward once for each completion, and saves its scores.

    For slow or paid rewards, such as an LLM judge behind an API. With a `path`
    the scores are kept in an SQLite file: a run that is started again, also
    after a crash, calls the reward for new completions only, and
    `Cached(None, path)` repeats a run without its reward. Scores are returned
    bit for bit as they were given. `None` ("cannot score") is an answer too:
    to retry failed calls later, use `ConcurrentReward(Cached(...))`, which
    drops prompts without saving anything, not `Cached(ConcurrentReward(...))`.

    Completions are the same if all that a reward can read of them is: prompt
    or conversation, text, tokens, whether they ended, and the other columns.
    For rewards that compare the completions of a prompt, such as `RankFusion`
    or a list of rewards, all completions of the prompt must be the same. Of
    equal completions in one call, the reward sees the first. A completion whose
    score is saved adds nothing to `log_metric` and `log_extra`.

    Nothing is ever deleted. A path belongs to one reward: use a new one when
    the reward changes, or its old scores are returned. Several threads and
    processes may share a path. The file is an ordinary SQLite database, with a
    table `scores` of `prompt`, `completion` and `score`. A copy or a pickle
    uses the same path, or holds the scores that are in memory.

    Args:
        reward: what `keras_bond.rewards.get` takes; or `None` to replay the
            scores in `path`, where a completion that is not in the file
            raises an error.
        path: str or path of the file, which is created if it does not exist;
            or `None` to keep the scores in memory. Not restored from saved
            models, so that loading a model opens no other file.
            Defaults to `None`.

    Attributes:
        hits, misses: int. Completions answered from the saved scores, and
            those that the reward was called for.

    Raises:
        FileNotFoundError: if `reward` is `None` and there is no such file, or
            if the folder of `path` does not exist.
        TypeError: if `path` is not a path; when scoring, if a column holds
            objects other than numbers, strings, dates, paths, arrays, lists,
            dicts and data classes, whose text may not be their whole value.
        ValueError: if `reward` and `path` are both `None`, if `Cached` did not
            write the file or the file is damaged, or, when scoring with
            `reward=None`, for a completion that is not in the file.

    Example:

    ```python
    bond.reward = keras_bond.rewards.Cached(judge, "scores.sqlite")
    bond.fit(prompts)  # and again, without the judge:
    bond.reward = keras_bond.rewards.Cached(None, "scores.sqlite")
    ```
    """

    def __init__(self, reward, path=None):
        self.path = None if path is None else _as_path(path)
        self._is_replay = reward is None
        if self._is_replay and path is None:
            raise ValueError(
                "`reward` must be given, or the `path` of saved scores to "
                "replay. Received: reward=None, path=None"
            )
        if self._is_replay:
            self.reward = None
            self.name = f"Cached({os.path.basename(self.path)})"
            # Unknown, so a wrapper must keep the completions together.
            self.compares = True
        else:
            super().__init__(reward)
        self.hits = self.misses = 0
        self._lock = threads.Lock()
        self._store = ScoreStore(self.path, must_exist=self._is_replay)

    def score(self, samples):
        if self._is_replay:
            return self._replay(samples)
        keys = keys_of(samples, self.compares)
        known = self._store.read(keys)
        rows = self._unknown_rows(keys, known, samples.num_samples)
        if rows:
            self._ask(samples, keys, rows)
            known = self._store.read(keys)
        self._count(hits=len(keys) - len(rows), misses=len(rows))
        return _as_array(known[key] for key in keys)

    def _unknown_rows(self, keys, known, num_samples):
        """The rows to ask for: whole prompts if the reward compares."""
        if not self.compares:
            first = {key: i for i, key in reversed(list(enumerate(keys)))}
            return sorted(i for key, i in first.items() if key not in known)
        groups = {}
        for start in range(0, len(keys), num_samples):
            group = range(start, start + num_samples)
            if any(keys[i] not in known for i in group):
                groups.setdefault(keys[start], group)
        return [i for group in groups.values() for i in group]

    def _ask(self, samples, keys, rows):
        num_samples = samples.num_samples if self.compares else 1
        unknown = samples.pick(rows, num_samples)
        scores = self.reward(unknown).tolist()
        samples.log.add(unknown.log, rows, len(samples))
        texts = zip(*(_texts(samples, name) for name in TEXTS))
        texts = list(texts) if self.path else [(None, None)] * len(keys)
        self._store.write(
            [
                (keys[i], None if np.isnan(score) else score, *texts[i])
                for i, score in zip(rows, scores, strict=True)
            ]
        )

    def _replay(self, samples):
        keys = keys_of(samples, compares=False)
        known = self._store.read(keys)
        if len(known) < len(set(keys)):
            # The reward compared completions, if there was one at all.
            by_prompt = keys_of(samples, compares=True)
            known.update(self._store.read(by_prompt))
            keys = [a if a in known else b for a, b in zip(keys, by_prompt)]
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            prompt, completion = (
                _texts(samples, name)[missing[0]] for name in TEXTS
            )
            raise RewardValueError(
                "`path` must hold the score of every completion when it is "
                "replayed: replay the run that was saved, with its prompts, "
                "columns, seed and machine, or pass the reward, "
                "`Cached(reward, path)`, to score the others. Received: "
                f"prompt={prompt!r}, completion={completion!r}, not in "
                f"{self.path}"
            )
        self._count(hits=len(keys), misses=0)
        return _as_array(known[key] for key in keys)

    def _count(self, hits, misses):
        with self._lock:
            self.hits += hits
            self.misses += misses

    def variables(self):
        return [] if self._is_replay else super().variables()

    def get_config(self):
        config = {"reward": None} if self._is_replay else super().get_config()
        return {**config, "path": self.path}

    @classmethod
    def from_config(cls, config):
        path = config["path"]
        if config["reward"] is None:
            raise ValueError(
                "Saved scores are not opened when a model is loaded: set "
                "`bond.reward = keras_bond.rewards.Cached(None, path)`. "
                f"Received: reward=None, path={path!r}"
            )
        if path is not None:
            warnings.warn(
                "A `Cached` reward was loaded without its file, and keeps "
                "scores in memory: to use the file, set `bond.reward = "
                f"keras_bond.rewards.Cached(reward, {path!r})`.",
                stacklevel=2,
            )
        return super().from_config({"reward": config["reward"]})


TEXTS = ("prompts", "completions")


def _texts(samples, name):
    """Readable text for the file; `None` for samples of tokens alone."""
    texts = getattr(samples, name)
    if texts is None:
        return [None] * len(samples)
    # SQLite holds valid UTF-8 only.
    return [t.encode("utf-8", "backslashreplace").decode() for t in texts]


def _as_array(scores):
    scores = [np.nan if score is None else score for score in scores]
    return np.array(scores, "float64")


def _as_path(path):
    if isinstance(path, (str, os.PathLike)) and os.fspath(path):
        return os.path.expanduser(os.fspath(path))
    raise TypeError(
        "`path` must be the path of a file, or None. "
        f"Received: path={path!r} of type {type(path).__name__}"
    )


def keys_of(samples, compares):
    """Keys that are equal if a reward can see no difference.

    Args:
        samples: a `Samples`.
        compares: bool. Whether the score of a completion depends on the others
            of its prompt.

    Returns:
        list of bytes, one for each completion, the same in every process.
    """
    keys = [_digest(_describe(samples, i)) for i in range(len(samples))]
    if not compares:
        return keys
    step = samples.num_samples
    groups = [
        _digest(["group", *keys[start : start + step]])
        for start in range(0, len(keys), step)
    ]
    return [_digest([groups[i // step], i % step]) for i in range(len(keys))]


def _describe(samples, i):
    def of(values):
        return None if values is None else values[i]

    mask = np.asarray(samples.padding_mask[i], bool)
    completion_ids = of(samples.completion_ids)
    terminated = of(samples.terminated)
    return [
        of(samples.prompts),
        of(samples.completions),
        of(samples.conversations),
        _ids(np.asarray(samples.token_ids[i])[mask]),
        None if completion_ids is None else _ids(completion_ids),
        None if terminated is None else bool(terminated),
        {name: column[i] for name, column in samples.columns.items()},
    ]


def _ids(token_ids):
    return np.asarray(token_ids, "<i8").tobytes()


def _digest(value):
    return hashlib.sha256(canonical_text(value).encode("ascii")).digest()


def _ascii(value):
    # Python writes integers of more than 4,300 digits in hexadecimal only.
    is_long = type(value) is int and value.bit_length() > 10_000
    return hex(value) if is_long else ascii(value)


def _is_image(array):
    is_masked = isinstance(array, np.ma.MaskedArray)
    return array.ndim >= 3 and array.dtype.kind in "uif" and not is_masked


def canonical_text(value):
    """Writes a value so that equal values give the same text in any process.

    Args:
        value: number, string, date, path, array, or a list, tuple, set, dict
            or data class of these.

    Returns:
        str, ASCII only.

    Raises:
        TypeError: for other objects, whose text may not be their value.
    """
    if isinstance(value, np.ndarray) and _is_image(value):
        # An image: its numbers would be millions of characters.
        content = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
        return f"array({value.shape}, {value.dtype}, {content})"
    if hasattr(value, "tolist"):
        value = to_python(value)
    elif hasattr(value, "numpy"):
        return canonical_text(value.numpy())
    if isinstance(value, dict):
        items = (
            f"{canonical_text(key)}: {canonical_text(entry)}"
            for key, entry in value.items()
        )
        return f"{{{', '.join(sorted(items))}}}"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(map(canonical_text, value)))})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(canonical_text, value))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: getattr(value, name) for name in names}
        return f"{type(value).__qualname__}({canonical_text(fields)})"
    is_shown = isinstance(value, SHOWN) or is_missing(value)
    text = _ascii(value) if is_shown else ""
    has_address = not isinstance(value, PLAIN) and ADDRESS.search(text)
    if not is_shown or has_address:
        raise RewardTypeError(
            "The columns of a `Cached` reward must hold values that can be "
            "compared in another run, such as strings, numbers, lists and "
            "dicts: leave out other columns. "
            f"Received: {shown(value)} of type {type(value).__name__}"
        )
    return text
