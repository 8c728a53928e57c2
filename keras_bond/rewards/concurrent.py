"""Slow rewards, called from several threads."""

import collections
import functools
import threading
import warnings

import keras
import numpy as np

from keras_bond.arguments import check_count
from keras_bond.arguments import is_number
from keras_bond.rewards import threads
from keras_bond.rewards.reward import Wrapper
from keras_bond.rewards.scores import RewardError


@keras.saving.register_keras_serializable(package="keras_bond")
class ConcurrentReward(Wrapper):
    """Calls a slow reward from several threads, with a timeout and retries.

    For rewards that wait for a network or a subprocess, such as an LLM judge
    behind an API: the completions of a batch are split by prompts, and
    `max_workers` calls run at the same time. All completions of a prompt are
    in one call. The reward must be thread-safe.

    A call that exceeds `timeout` is abandoned: the next call takes its place,
    and what it returns is ignored. Its thread continues until the call
    returns, because Python cannot stop a thread, but keeps neither training
    nor the process from ending. Give network clients a timeout of their own,
    so that such threads do not accumulate.

    If the reward breaks its contract (too few numbers, a NaN, a column that
    the data lack), that is a bug and is raised at once, without retries.

    Args:
        reward: what `keras_bond.rewards.get` takes: a function with the
            signature `reward(prompts, completions, **columns)`, `async def` or
            not (each call has an event loop of its own), a `Reward`, or a list
            of these. A Keras model gains nothing here.
        max_workers: int. Calls at the same time. Defaults to 8.
        batch_size: int. Prompts per call, with all their completions: these
            share one timeout, are retried together and dropped together. Use
            more than 1 if the reward takes many completions in one request.
            Defaults to 1.
        timeout: float. Seconds for one attempt of one call, or `None` for no
            limit. A batch takes at most `timeout`, times `retries + 1`, times
            the calls per worker, plus the delays. Defaults to `None`.
        retries: int. Further attempts after an exception or a timeout.
            Defaults to 0.
        retry_delay: float. Seconds before the first retry; the delay doubles
            with each further one. Defaults to 1.
        on_failure: what to do after the last attempt. `"raise"` ends training,
            with the weights of the last complete step. `"drop"` continues as
            if the reward had returned `None`: the prompts are masked out,
            counted in `dropped` and logged as `frac_prompts_unscored`; in a
            list of rewards, only the others count for these prompts. Defaults
            to `"raise"`.

    Attributes:
        dropped: `collections.Counter`. Prompts dropped so far, by the name of
            the exception of their last attempt.

    Raises:
        ValueError: if an argument is out of its range.
        TimeoutError: when scoring, if the last attempt took too long.
        RuntimeError: when scoring, if it raised anything else.

    Example:

    ```python
    def judge(prompts, completions):
        return [ask_llm(p, c) for p, c in zip(prompts, completions)]

    reward = keras_bond.rewards.ConcurrentReward(
        judge, max_workers=16, timeout=30.0, retries=2, on_failure="drop"
    )
    bond = keras_bond.Bond(
        policy, reward, max_prompt_length=256, max_completion_length=256
    )
    ```
    """

    def __init__(
        self,
        reward,
        max_workers=8,
        batch_size=1,
        timeout=None,
        retries=0,
        retry_delay=1.0,
        on_failure="raise",
    ):
        check_count("max_workers", max_workers, 1)
        check_count("batch_size", batch_size, 1)
        check_count("retries", retries, 0)
        _check_seconds(timeout, retry_delay)
        if on_failure not in ("raise", "drop"):
            raise ValueError(
                '`on_failure` must be "raise" or "drop". '
                f"Received: on_failure={on_failure!r}"
            )
        super().__init__(reward)
        self.max_workers = max_workers
        self.batch_size = batch_size
        self.timeout = timeout
        self.retries = retries
        self.retry_delay = retry_delay
        self.on_failure = on_failure
        self.dropped = collections.Counter()
        self._lock = threads.Lock()

    def score(self, samples):
        answers = threads.map_concurrently(
            self._ask, samples.split(self.batch_size), self.max_workers
        )
        scores = np.full(len(samples), np.nan)
        rows = self.batch_size * samples.num_samples
        dropped = collections.Counter()
        for i, answer in enumerate(answers):
            part = scores[i * rows : (i + 1) * rows]
            if isinstance(answer, Exception):
                num_prompts = len(part) // samples.num_samples
                dropped[type(answer).__name__] += num_prompts
            else:
                part[:], log = answer
                indices = range(i * rows, i * rows + len(part))
                samples.log.add(log, indices, len(samples))
        self._count(dropped)
        return scores

    def _ask(self, samples, stopped):
        """Calls the reward until it answers.

        Returns:
            scores and `RewardLog`, or the exception for which the prompts are
            dropped.
        """
        for attempt in range(self.retries + 1):
            if attempt:
                # Above 2 ** 1023, Python raises an OverflowError.
                delay = self.retry_delay * 2.0 ** min(attempt - 1, 1000)
                # Unlike a sleep, this ends as soon as another call has failed.
                stopped.wait(min(delay, threading.TIMEOUT_MAX))
            if stopped.is_set():
                return None
            # A log of its own: what a failed attempt has logged is lost.
            attempted = samples.pick(range(len(samples)), samples.num_samples)
            try:
                scores = threads.call_within(
                    self.timeout, functools.partial(self.reward, attempted)
                )
                return scores, attempted.log
            except RewardError:
                raise
            except Exception as error:
                failure = error
        if self.on_failure == "drop":
            return failure
        late = isinstance(failure, TimeoutError)
        kind = TimeoutError if late else RuntimeError
        raise kind(self._complaint(failure)) from failure

    def _complaint(self, failure):
        return (
            f"The reward `{self.name}` must answer: fix what it raised, raise "
            '`timeout` or `retries`, or pass on_failure="drop" to continue '
            f"without the prompts that it fails for. Received: {failure!r} in "
            f"attempt {self.retries + 1} of {self.retries + 1}, with "
            f"timeout={self.timeout} seconds"
        )

    def _count(self, dropped):
        with self._lock:
            new = dropped.keys() - self.dropped.keys()
            self.dropped.update(dropped)
        for kind in sorted(new):
            warnings.warn(
                f"The reward `{self.name}` failed in all of "
                f"{self.retries + 1} attempts for {dropped[kind]} prompt(s), "
                f"which are masked out: {kind}. Further ones are dropped "
                "without a warning; see `frac_prompts_unscored` in the logs, "
                "and `dropped` of the reward.",
                stacklevel=3,
            )

    def get_config(self):
        return {
            **super().get_config(),
            "max_workers": self.max_workers,
            "batch_size": self.batch_size,
            "timeout": self.timeout,
            "retries": self.retries,
            "retry_delay": self.retry_delay,
            "on_failure": self.on_failure,
        }


def _check_seconds(timeout, retry_delay):
    if timeout is not None and not (is_number(timeout, 0) and timeout):
        raise ValueError(
            "`timeout` must be a number of seconds above 0, or None for no "
            f"limit. Received: timeout={timeout!r}"
        )
    if not is_number(retry_delay, 0):
        raise ValueError(
            "`retry_delay` must be a number of seconds, at least 0. "
            f"Received: retry_delay={retry_delay!r}"
        )
