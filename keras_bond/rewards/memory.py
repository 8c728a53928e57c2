"""Scores that are kept: in memory, or in a file to repeat a run from."""

import collections
import hashlib
import json
import os
import threading

import keras
import numpy as np

from keras_bond.arguments import is_count
from keras_bond.rewards.reward import Reward
from keras_bond.rewards.validation import RewardValueError
from keras_bond.rewards.wrapper import Wrapper

# How a line of `Recorded` begins.
RECORD = b'{"key": "'


@keras.saving.register_keras_serializable(package="keras_bond")
class Cached(Wrapper):
    """Asks a reward once for each completion, and remembers the answer.

    For slow rewards where completions come back: near-deterministic policies,
    short answers, repeated evaluations. Completions are the same if prompt,
    tokens and all columns are. A reward that said `None` is asked again.

    Args:
        reward: what `keras_bond.rewards.get` takes. Its score of a completion
            must not depend on the others of the prompt, see `RankFusion`: put
            the cache around the rewards inside.
        max_size: int, or `None` for no limit. Completions to remember, the
            longest unused go first. Defaults to 100,000.

    Attributes:
        hits, misses: int. Completions answered from memory, and asked for.

    Raises:
        ValueError: if `reward` compares completions, or `max_size` is below 1.

    Example:

    ```python
    reward = keras_bond.rewards.Cached(judge)
    ```
    """

    def __init__(self, reward, max_size=100_000):
        super().__init__(reward)
        if self.compares:
            raise ValueError(
                "`reward` must score each completion by itself: put `Cached` "
                "around the rewards inside of it. Received: "
                f"reward=`{self.name}`, which compares a prompt's completions"
            )
        if max_size is not None and not is_count(max_size, 1):
            raise ValueError(
                "`max_size` must be an integer of at least 1, or None. "
                f"Received: max_size={max_size!r}"
            )
        self.max_size = max_size
        self.hits = self.misses = 0
        self._scores = collections.OrderedDict()
        self._lock = threading.Lock()

    def score(self, samples):
        keys = keys_of(samples)
        # Backwards, so that the first of equal completions is asked for.
        rows = {key: i for i, key in reversed(list(enumerate(keys)))}
        with self._lock:
            known = {k: self._scores[k] for k in rows if k in self._scores}
        asked = [key for key in rows if key not in known]
        if asked:
            part = samples.pick([rows[key] for key in asked])
            known.update(zip(asked, self.reward(part).tolist()))
        with self._lock:
            self.misses += len(asked)
            self.hits += len(keys) - len(asked)
            self._remember(known)
        return np.array([known[key] for key in keys], "float32")

    def _remember(self, scores):
        for key, score in scores.items():
            if not np.isnan(score):
                self._scores[key] = score
                self._scores.move_to_end(key)
        while self.max_size is not None and len(self._scores) > self.max_size:
            self._scores.popitem(last=False)

    def get_config(self):
        return {**super().get_config(), "max_size": self.max_size}


@keras.saving.register_keras_serializable(package="keras_bond")
class Recorded(Wrapper):
    """Writes every score of a reward into a file, for `Replayed`.

    One line of JSON for each completion, appended and flushed batch by batch:
    what a run that was killed had scored is there. A last line that was cut is
    removed before the next is written.

    Args:
        reward: what `keras_bond.rewards.get` takes.
        path: str or path of the JSONL file; may exist.

    Example:

    ```python
    bond.reward = keras_bond.rewards.Recorded(judge, "scores.jsonl")
    bond.fit(prompts)  # and again, anywhere, without the judge:
    bond.reward = keras_bond.rewards.Replayed("scores.jsonl")
    ```
    """

    def __init__(self, reward, path):
        super().__init__(reward)
        self.path = os.fspath(path)
        self._lock = threading.Lock()

    def score(self, samples):
        scores = self.reward(samples)
        lines = [
            json.dumps(
                {
                    "key": key,
                    "prompt": samples.prompts and samples.prompts[i],
                    "completion": samples.completions
                    and samples.completions[i],
                    "score": None if np.isnan(score) else float(score),
                }
            )
            for i, (key, score) in enumerate(zip(keys_of(samples), scores))
        ]
        with self._lock:
            _drop_cut_line(self.path)
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
        return scores

    def get_config(self):
        return {**super().get_config(), "path": self.path}


@keras.saving.register_keras_serializable(package="keras_bond")
class Replayed(Reward):
    """Answers from a file that `Recorded` wrote: a run without its reward.

    The same run, with the same seed on the same machine, comes out bit for
    bit. Where a completion was scored several times, the answers come in the
    order in which they were given, the last one from then on.

    Args:
        path: str or path of the JSONL file. A last line that was cut does not
            count.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if `Recorded` did not write it, or when scoring a
            completion that is not in it.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        self.name = f"Replayed({os.path.basename(self.path)})"
        self._answers = collections.defaultdict(collections.deque)
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    key, score = _read_record(line, self.path, number)
                    self._answers[key].append(score)

    def score(self, samples):
        scores = [
            self._answer(samples, i, key)
            for i, key in enumerate(keys_of(samples))
        ]
        return np.array(scores, "float32")

    def _answer(self, samples, i, key):
        answers = self._answers.get(key)
        if not answers:
            prompt = samples.prompts and samples.prompts[i]
            completion = samples.completions and samples.completions[i]
            raise RewardValueError(
                f"The file of `{self.name}` must hold every completion that is "
                "scored: replay the very run that was recorded, with its data, "
                "seed and machine, or record this one. Received: "
                f"prompt={prompt!r}, completion={completion!r}, not in "
                f"{self.path}"
            )
        score = answers.popleft() if len(answers) > 1 else answers[0]
        return np.nan if score is None else score

    def get_config(self):
        return {"path": self.path}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def keys_of(samples):
    """What tells a completion from another: prompt, text, tokens, columns.

    Returns:
        list of str, hexadecimal digests.
    """
    keys = []
    for i, (ids, mask) in enumerate(
        zip(samples.token_ids, samples.padding_mask)
    ):
        described = [
            samples.prompts and samples.prompts[i],
            samples.completions and samples.completions[i],
            np.asarray(ids)[np.asarray(mask, bool)],
            {name: column[i] for name, column in samples.columns.items()},
        ]
        text = json.dumps(described, sort_keys=True, default=_plain)
        keys.append(hashlib.sha256(text.encode()).hexdigest())
    return keys


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _read_record(line, path, number):
    try:
        record = json.loads(line.decode("utf-8"))
        score = record["score"]
        return record["key"], None if score is None else float(score)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "`path` must be a file that `Recorded` wrote. Received: "
            f"{path}, line {number}, {error}"
        ) from error


def _drop_cut_line(path):
    """Cuts a file behind its last line break, if what is there is a record.

    Raises:
        ValueError: if the file is another one.
    """
    if not os.path.exists(path):
        return
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        file.seek(end)
        cut = file.read(len(RECORD))
        if not RECORD.startswith(cut):
            raise ValueError(
                "`path` must be a new file or one that `Recorded` wrote. "
                f"Received: {path}, whose last line begins with {cut!r}"
            )
        if end < size:
            file.truncate(end)
