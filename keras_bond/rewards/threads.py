"""Calls that may fail or hang, in daemon threads.

Python joins the threads of `concurrent.futures` when it exits, so that one call
that hangs would keep the process alive; it does not join daemon threads.
"""

import functools
import threading
from concurrent import futures

NAME = "keras_bond reward"


class Lock:
    """A lock whose copies and pickles are locks of their own."""

    def __init__(self):
        self._lock = threading.Lock()

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *error):
        self._lock.release()

    def __reduce__(self):
        return Lock, ()


def start(function):
    """Calls `function()` in a thread of its own.

    Returns:
        a `concurrent.futures.Future` of what it returns or raises.
    """
    future = futures.Future()

    def run():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=NAME, daemon=True).start()
    return future


def call_within(timeout, function):
    """Calls `function()` with a timeout.

    Args:
        timeout: float, in seconds, or `None` for no limit.
        function: the callable. After the timeout it continues in its thread,
            because Python cannot stop a thread, and its result is ignored.

    Returns:
        what it returns.

    Raises:
        TimeoutError: if it is not done in time.
    """
    if timeout is None:
        return function()
    future = start(function)
    futures.wait([future], min(timeout, threading.TIMEOUT_MAX))
    if not future.done():
        raise TimeoutError(f"no answer within {timeout} seconds")
    return future.result()


def map_concurrently(function, items, max_workers):
    """Calls `function(item, stopped)` for every item from several threads.

    Args:
        function: callable of an item and of a `threading.Event`, which is set
            once the results no longer matter.
        items: list.
        max_workers: int. Calls at the same time.

    Returns:
        list of results, in the order of the items.

    Raises:
        what the first call to fail raises, without waiting for the others.
    """
    stopped = threading.Event()
    calls, running = [], set()
    try:
        for item in items:
            if len(running) == max_workers:
                running = _wait(running, futures.FIRST_COMPLETED)
            calls.append(start(functools.partial(function, item, stopped)))
            running.add(calls[-1])
        _wait(running, futures.FIRST_EXCEPTION)
        return [call.result() for call in calls]
    finally:
        stopped.set()


def _wait(running, return_when):
    done, running = futures.wait(running, return_when=return_when)
    for call in done:
        call.result()
    return running
