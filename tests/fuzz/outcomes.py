"""What may come of junk: a right result, or an error that names it.

Examples are derived from the tests themselves, the same in every run; nothing
is kept between runs.
"""

import contextlib
import signal

import hypothesis
from hypothesis import strategies

SECONDS = 120

JUNK = strategies.one_of(
    strategies.none(),
    strategies.booleans(),
    strategies.integers(-3, 3),
    strategies.sampled_from([2**31, 10**9, -(10**9)]),
    strategies.floats(),
    strategies.text(max_size=3),
    strategies.binary(max_size=3),
    strategies.lists(strategies.integers(-2, 2), max_size=3),
    strategies.just({}),
    strategies.just(object()),
    strategies.just(len),
)


def examples(count):
    """Settings of a test: how many examples it tries."""
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextlib.contextmanager
def in_time():
    """Fails a test that hangs."""

    def stop(*_):
        raise AssertionError(f"nothing came of it in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def result_or_named_error(function, *also):
    """Calls a function that is given junk.

    Args:
        function: callable without arguments.
        *also: further types of exception that count as named.

    Returns:
        `(result, None)` or `(None, error)`, where the error says what the rule
        is and what was received. Everything else fails the test.
    """
    with in_time():
        try:
            return function(), None
        except also as error:
            return None, error
        except (TypeError, ValueError) as error:
            if "Received" not in str(error):
                raise AssertionError(
                    f"no message of this package: {type(error)}: {error}"
                ) from error
            return None, error
