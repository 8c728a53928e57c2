"""Scores in an SQLite database, in memory or in a file."""

import contextlib
import os
import sqlite3
import weakref

from keras_bond.rewards import threads
from keras_bond.rewards.scores import RewardValueError

# What SQLite writes into the header of our files: "KBsc".
APPLICATION_ID = 0x4B427363
SECONDS_TO_WAIT = 60.0
# Fewer than the smallest limit of parameters that SQLite was built with.
KEYS_PER_QUERY = 500


class ScoreStore:
    """A table of scores by key, for several threads and processes.

    Args:
        path: str, or `None` for a table in memory.
        must_exist: bool. Whether an error is raised if there is no such table
            instead of making one.

    Raises:
        FileNotFoundError: if there is no file, or no folder for it.
        ValueError: if the file is damaged or of another kind.
    """

    def __init__(self, path=None, must_exist=False):
        self.path = path
        self.must_exist = must_exist
        self._lock = threads.Lock()
        if path is not None:
            needed = path if must_exist else os.path.dirname(path) or "."
            if not os.path.exists(needed):
                raise FileNotFoundError(
                    "`path` must be a file that `Cached` wrote, or a new one "
                    "in a folder that exists. "
                    f"Received: path={path!r}, there is no {needed!r}"
                )
        with self._errors_named():
            # `self._lock` replaces the check that one thread is used.
            self._connection = sqlite3.connect(
                ":memory:" if path is None else os.path.abspath(path),
                timeout=SECONDS_TO_WAIT,
                isolation_level=None,
                check_same_thread=False,
            )
        weakref.finalize(self, self._connection.close)
        with self._errors_named():
            is_ours = self._is_ours()
            (page_size,) = self._one("PRAGMA page_size")
        if must_exist and not is_ours:
            raise self._error("a file of another kind")
        # SQLite reads zeros in place of the end of a page that is missing.
        if path is not None and os.path.getsize(path) % page_size:
            raise self._error("a truncated file")
        if not is_ours:
            with self._transaction():
                self._create()

    def __reduce__(self):
        if self.path is not None:
            return ScoreStore, (self.path, self.must_exist)
        with self._lock:
            entries = self._connection.execute("SELECT * FROM scores")
            return _in_memory, (entries.fetchall(),)

    def _is_ours(self):
        return self._one("PRAGMA application_id") == (APPLICATION_ID,)

    def _one(self, query):
        return self._connection.execute(query).fetchone()

    def _create(self):
        # Another process may have been faster.
        if self._is_ours():
            return
        if self._one("SELECT count(*) FROM sqlite_master") != (0,):
            raise self._error("a file of another kind")
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # `score` has no type: a column of numbers would turn -0.0 into 0.0.
        self._connection.execute(
            "CREATE TABLE scores (key BLOB PRIMARY KEY, score, prompt TEXT, "
            "completion TEXT) WITHOUT ROWID"
        )

    def read(self, keys):
        """Returns a dict of the scores that are known, `None` included."""
        keys, found = list(set(keys)), {}
        with self._lock, self._errors_named():
            for start in range(0, len(keys), KEYS_PER_QUERY):
                part = keys[start : start + KEYS_PER_QUERY]
                marks = ", ".join("?" * len(part))
                found.update(
                    self._connection.execute(
                        f"SELECT key, score FROM scores WHERE key IN ({marks})",
                        part,
                    )
                )
        return found

    def write(self, entries):
        """Adds scores, all or none; a key that is known keeps its score.

        Args:
            entries: list of `(key, score, prompt, completion)`: bytes, float
                or `None`, and str or `None`.
        """
        with self._transaction():
            self._connection.executemany(
                "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)", entries
            )

    @contextlib.contextmanager
    def _transaction(self):
        with self._lock, self._errors_named():
            # Waits for other processes before anything is read.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors_named(self):
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, reason):
        return RewardValueError(
            "The file of a `Cached` reward must be one that `Cached` wrote, "
            "whole and writable: pass another `path`, or delete the file if "
            f"its scores are not needed. Received: path={self.path!r}, {reason}"
        )


def _in_memory(entries):
    store = ScoreStore()
    store.write(entries)
    return store
