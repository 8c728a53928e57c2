"""Slow rewards: asked side by side, given up, asked again, or dropped.

Nothing here is timed: that calls run at once is shown by a barrier that only
lets them pass together, and a reward "hangs" on an event that never comes.
"""

import asyncio
import collections
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond import rewards
from keras_bond.rewards import ConcurrentReward
from keras_bond.rewards.reward import FunctionReward
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

# Longer than anything here takes; only a failing test waits for it.
BOUND = 60


def samples(num_prompts=4, num_samples=2):
    """Completion `i` of prompt `p` is the text of `num_samples * p + i`."""
    rows = num_prompts * num_samples
    ids = np.arange(rows * 3, dtype="int32").reshape(rows, 3)
    return rewards.Samples(
        prompts=[f"p{i // num_samples}" for i in range(rows)],
        completions=[str(i) for i in range(rows)],
        columns={"answer": [10 * i for i in range(rows)]},
        token_ids=ids,
        padding_mask=ids >= 0,
        num_samples=num_samples,
    )


@keras.saving.register_keras_serializable(package="tests")
def number(prompts, completions):
    return [float(completion) for completion in completions]


class Failing:
    """Raises for some prompts, a number of times, and counts its calls."""

    def __init__(self, error, prompts=("p1",), times=99):
        self.error, self.prompts, self.times = error, prompts, times
        self.calls = collections.Counter()

    def __call__(self, prompts, completions):
        self.calls[prompts[0]] += 1
        bad = prompts[0] in self.prompts
        if bad and self.calls[prompts[0]] <= self.times:
            raise self.error
        return number(prompts, completions)


@pytest.fixture
def hanging():
    """A reward that hangs for prompt p1 until the test is over."""
    over = threading.Event()

    def judge(prompts, completions):
        if "p1" in prompts:
            over.wait(BOUND)
        return number(prompts, completions)

    yield judge
    over.set()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
@pytest.mark.parametrize("max_workers", [1, 2, 8])
def test_every_completion_keeps_its_place(batch_size, max_workers):
    """Also with fewer prompts left for the last call, and for a column."""

    def with_column(prompts, completions, answer):
        return [a + float(c) for a, c in zip(answer, completions)]

    reward = ConcurrentReward(with_column, max_workers, batch_size)
    np.testing.assert_array_equal(reward(samples()), 11.0 * np.arange(8))
    assert reward(samples(num_prompts=0)).shape == (0,)


def test_the_order_is_that_of_the_prompts_not_of_the_answers():
    """The first call answers last, for it waits for all the others."""
    others = threading.Semaphore(0)

    def judge(prompts, completions):
        for _ in range(3 if prompts[0] == "p0" else 0):
            assert others.acquire(timeout=BOUND)
        others.release()
        return number(prompts, completions)

    np.testing.assert_array_equal(
        ConcurrentReward(judge, max_workers=4)(samples()), np.arange(8)
    )


@pytest.mark.parametrize("batch_size, parts", [(1, 5), (2, 3)])
def test_the_completions_of_a_prompt_are_in_one_call(batch_size, parts):
    """A reward may compare them."""
    seen = []

    def judge(prompts, completions):
        seen.append(collections.Counter(prompts))
        return number(prompts, completions)

    ConcurrentReward(judge, batch_size=batch_size)(samples(5, 3))
    assert len(seen) == parts
    assert {n for counts in seen for n in counts.values()} == {3}


def test_as_many_calls_as_workers_run_at_once():
    """Each waits for the other three: one after another they never pass."""
    barrier = threading.Barrier(4, timeout=BOUND)

    def judge(prompts, completions):
        barrier.wait()
        return number(prompts, completions)

    scores = ConcurrentReward(judge, max_workers=4)(samples(num_prompts=8))
    np.testing.assert_array_equal(scores, np.arange(16))


def test_no_more_calls_than_workers_run_at_once():
    entered, leave = threading.Semaphore(0), threading.Event()

    def judge(prompts, completions):
        entered.release()
        assert leave.wait(BOUND)
        return number(prompts, completions)

    reward = ConcurrentReward(judge, max_workers=2)
    scoring = threading.Thread(target=reward, args=(samples(),))
    scoring.start()
    assert entered.acquire(timeout=BOUND) and entered.acquire(timeout=BOUND)
    assert not entered.acquire(timeout=0.2)
    leave.set()
    scoring.join(BOUND)
    assert not scoring.is_alive()


def test_a_third_attempt_succeeds():
    judge = Failing(ConnectionError("busy"), times=2)
    reward = ConcurrentReward(judge, retries=2, retry_delay=0.0)
    np.testing.assert_array_equal(reward(samples()), np.arange(8))
    assert judge.calls == {"p0": 1, "p1": 3, "p2": 1, "p3": 1}
    assert not reward.dropped


def test_the_delay_doubles_with_each_attempt():
    class Stopped:
        waits = []

        def wait(self, seconds):
            self.waits.append(seconds)

        def is_set(self):
            return False

    judge = Failing(ConnectionError("busy"), prompts=("p0",), times=3)
    reward = ConcurrentReward(judge, retries=3, retry_delay=0.5)
    reward._ask(samples(1), Stopped())
    assert Stopped.waits == [0.5, 1.0, 2.0]


def test_the_last_exception_is_raised_with_its_cause():
    judge = Failing(ConnectionError("busy"))
    reward = ConcurrentReward(judge, retries=1, retry_delay=0.0)
    with pytest.raises(
        RuntimeError,
        match=r"`Failing` must answer.*Received: ConnectionError\('busy'\) in "
        r"attempt 2 of 2",
    ) as raised:
        reward(samples())
    assert raised.value.__cause__ is judge.error
    assert judge.calls["p1"] == 2


def test_a_call_that_hangs_is_named(hanging):
    reward = ConcurrentReward(hanging, timeout=0.05)
    with pytest.raises(
        TimeoutError,
        match=r"`judge` must answer.*`timeout` or `retries`.*on_failure=.*"
        r"no answer within 0.05 seconds.*in attempt 1 of 1",
    ):
        reward(samples())


def test_hanging_calls_leave_their_places_to_others(hanging):
    """One worker, two attempts that hang: the others are scored all the same.

    The limit is above what the prompts that answer need on a busy machine.
    """
    reward = ConcurrentReward(
        hanging,
        max_workers=1,
        timeout=1.0,
        retries=1,
        retry_delay=0.0,
        on_failure="drop",
    )
    with pytest.warns(UserWarning, match=r"`judge`.*2 attempts.*TimeoutError"):
        scores = reward(samples())
    np.testing.assert_array_equal(scores, [0, 1, np.nan, np.nan, 4, 5, 6, 7])
    assert reward.dropped == {"TimeoutError": 1}


def test_dropped_prompts_are_counted_by_kind_and_warned_of_once():
    judge = Failing(ConnectionError("busy"), prompts=("p0", "p3"))
    reward = ConcurrentReward(judge, on_failure="drop", batch_size=3)
    with pytest.warns(UserWarning, match=r"4 prompt\(s\).*ConnectionError"):
        assert np.isnan(reward(samples())).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge.prompts = ("p3",)
        scores = reward(samples())
    np.testing.assert_array_equal(scores, [0, 1, 2, 3, 4, 5, np.nan, np.nan])
    judge.error = KeyError("x")
    with pytest.warns(UserWarning, match="KeyError"):
        reward(samples())
    assert reward.dropped == {"ConnectionError": 5, "KeyError": 1}


@pytest.mark.parametrize(
    "answer, error, text",
    [
        (lambda p, c: [1.0], ValueError, "one number for each"),
        (lambda p, c: [float("nan")] * 2, ValueError, "finite"),
        (lambda p, c: ["good"] * 2, TypeError, "must return numbers"),
        (lambda p, c: 1.0, TypeError, "must return a list"),
    ],
)
def test_wrong_answers_are_neither_tried_again_nor_dropped(answer, error, text):
    for others in ([], [number]):
        # A counter of its own: calls of the last round may still be running.
        calls = collections.Counter()

        def judge(prompts, completions, calls=calls):
            calls[prompts[0]] += 1
            return answer(prompts, completions)

        reward = [*others, judge] if others else judge
        wrong = ConcurrentReward(
            reward, retries=2, retry_delay=0.0, on_failure="drop"
        )
        with pytest.raises(error, match=text):
            wrong(samples())
        assert set(calls.values()) == {1} and not wrong.dropped


def test_a_missing_column_is_not_dropped():
    def grade(completions, solution):
        return completions

    with pytest.raises(ValueError, match="asks for `solution`"):
        ConcurrentReward(grade, on_failure="drop")(samples())


def test_a_failure_does_not_wait_for_the_delays_of_others():
    """Prompt 0 is to be asked again, prompt 1 answers wrongly: both end."""
    failed, asked = threading.Event(), []

    def judge(prompts, completions):
        asked.append(prompts[0])
        if prompts[0] == "p0":
            failed.set()
            raise ConnectionError("busy")
        assert failed.wait(BOUND)
        return ["wrong"] * len(prompts)

    reward = ConcurrentReward(judge, retries=1, retry_delay=BOUND / 2)
    with pytest.raises(TypeError, match="must return numbers"):
        reward(samples(num_prompts=2))
    for thread in threading.enumerate():
        if thread.name == rewards.threads.NAME:
            thread.join(BOUND)
            assert not thread.is_alive()
    assert sorted(asked) == ["p0", "p1"]


def test_in_a_list_the_others_count_alone_for_dropped_prompts():
    judge = Failing(ConnectionError("busy"))
    dropping = ConcurrentReward(judge, on_failure="drop")
    both = rewards.get([dropping, number], reward_weights=[1.0, 10.0])
    with pytest.warns(UserWarning, match="`Failing`"):
        scores = both(samples())
    np.testing.assert_array_equal(scores, [0, 11, 20, 30, 44, 55, 66, 77])
    assert both.name == "Failing+number" and both.needs_text


def test_it_shows_what_it_wraps():
    layer = keras.layers.Dense(1)
    layer.build((None, 3))
    reward = ConcurrentReward(layer)
    assert [v.path for v in reward.variables()] == [
        v.path for v in layer.variables
    ]
    assert not reward.needs_text and reward.name == layer.name
    assert reward.origin is reward and rewards.get(reward) is reward
    assert ConcurrentReward(number).variables() == []


async def thoughtful(prompts, completions, **columns):
    await asyncio.sleep(0)
    return number(prompts, completions)


def test_a_coroutine_function_is_a_reward_also_where_a_loop_runs():
    """As in TRL; a notebook's cell runs inside a loop."""

    async def cell(reward):
        return reward(samples())

    for reward in (rewards.get(thoughtful), ConcurrentReward(thoughtful)):
        np.testing.assert_array_equal(reward(samples()), np.arange(8))
        np.testing.assert_array_equal(asyncio.run(cell(reward)), np.arange(8))


def test_an_interrupt_gets_through(hanging):
    """Ctrl-C while the main thread waits for a call that hangs."""

    def judge(prompts, completions):
        main = threading.main_thread().ident
        signal.pthread_kill(main, signal.SIGINT)
        return hanging(["p1"], completions)

    # A shell's background jobs ignore Ctrl-C, and so would this test there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ConcurrentReward(judge)(samples())
    finally:
        signal.signal(signal.SIGINT, before)


SCRIPT = """
import threading
from keras_bond import rewards
from tests.rewards.test_concurrent import samples

def judge(prompts, completions):
    threading.Event().wait()

try:
    rewards.ConcurrentReward(judge, timeout=0.1)(samples())
except TimeoutError:
    print("given up")
"""


def test_a_hanging_call_does_not_keep_the_process_alive():
    """`subprocess` raises if it is not gone in time."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        timeout=2 * BOUND,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "given up\n"


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"max_workers": 0}, "`max_workers` must be an integer.*=0"),
        ({"batch_size": 1.5}, "`batch_size` must be an integer.*=1.5"),
        ({"retries": -1}, "`retries` must be an integer.*=-1"),
        ({"timeout": 0}, "`timeout` must be a number of seconds.*=0"),
        ({"retry_delay": -1.0}, "`retry_delay` must be.*=-1.0"),
        ({"on_failure": "ignore"}, "`on_failure` must be.*='ignore'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        ConcurrentReward(number, **arguments)


SETTINGS = {
    "max_workers": 3,
    "batch_size": 2,
    "timeout": 60.0,
    "retries": 4,
    "retry_delay": 0.25,
    "on_failure": "drop",
}


def make_bond(reward):
    bond = keras_bond.JBond(
        make_policy(),
        reward,
        max_prompt_length=12,
        max_completion_length=5,
        seed=1,
    )
    bond.compile(keras.optimizers.Adam(1e-5), **COMPILED_QUICKLY)
    return bond


def test_a_saved_run_keeps_it(tmp_path):
    """Inside a list too; an inner function that is lost is said to be."""
    reward = ConcurrentReward([number], **SETTINGS)
    make_bond([reward, number]).save(tmp_path / "bond.keras")
    loaded, other = keras.saving.load_model(tmp_path / "bond.keras").reward
    assert other is number and loaded.reward.origin == [number]
    assert {k: getattr(loaded, k) for k in SETTINGS} == SETTINGS

    def local(prompts, completions):
        return [0.0] * len(prompts)

    for lost in (local, FunctionReward(number)):
        make_bond(ConcurrentReward(lost)).save(tmp_path / "lost.keras")
        with pytest.warns(UserWarning, match="reward could not be loaded"):
            keras.saving.load_model(tmp_path / "lost.keras")


def test_a_run_logs_the_share_of_prompts_without_a_score():
    """2 of 6 prompts fail in each epoch; rows that fill a batch do not count.

    The rest trains on: `reward` is the mean over the others alone.
    """
    seen = collections.defaultdict(list)

    def lengths(prompts, completions):
        if prompts[0] in PROMPTS[1:3]:
            raise ConnectionError("busy")
        seen[prompts[0]].append(length_reward(prompts, completions))
        return seen[prompts[0]][-1]

    bond = make_bond(ConcurrentReward(lengths, on_failure="drop"))
    with pytest.warns(UserWarning, match="`lengths`.*ConnectionError"):
        history = bond.fit(PROMPTS[:6], batch_size=4, verbose=0).history
    assert history["frac_prompts_unscored"] == [pytest.approx(2 / 6)]
    scored = [scores[0][0] for scores in seen.values()]
    assert history["reward"] == [pytest.approx(np.mean(scored), rel=1e-5)]
    assert len(scored) == 4 and bond.reward.dropped == {"ConnectionError": 2}
    logs = bond.evaluate(PROMPTS[:5], return_dict=True, verbose=0)
    assert logs["frac_prompts_unscored"] == pytest.approx(2 / 5)
    bond.reward = length_reward
    logs = bond.evaluate(PROMPTS[:5], return_dict=True, verbose=0)
    assert logs["frac_prompts_unscored"] == 0.0


def test_a_run_that_ends_by_a_failure_leaves_the_weights_untouched():
    judge = Failing(ConnectionError("busy"), prompts=PROMPTS[:1])
    bond = make_bond(ConcurrentReward(judge))
    before = values_of(bond.policy.variables)
    with pytest.raises(RuntimeError, match="`Failing` must answer"):
        bond.fit(PROMPTS[:4], batch_size=4, verbose=0)
    for a, b in zip(before, values_of(bond.policy.variables)):
        np.testing.assert_array_equal(a, b)
    bond.reward = length_reward
    bond.fit(PROMPTS[:4], batch_size=4, verbose=0)


def test_times_of_centuries_are_waited_for():
    """Pins: an OverflowError, because threads wait 292 years at most."""
    failures = [ValueError()]

    def judge(prompts, completions):
        # What has answered already is not waited for.
        time.sleep(0.02)
        if failures:
            raise failures.pop()
        return [1.0] * len(prompts)

    reward = ConcurrentReward(judge, timeout=1e10, retries=1, retry_delay=0.0)
    assert reward(samples()).tolist() == [1.0] * len(samples())
    stopped = threading.Event()
    failing = ConcurrentReward(
        lambda prompts, completions: 1 / 0, retries=1100, retry_delay=0.0
    )
    with pytest.raises(RuntimeError, match="attempt 1101 of 1101"):
        failing._ask(samples(), stopped)
    waits = []
    stopped.wait = waits.append
    failing.retry_delay = 1e10
    with pytest.raises(RuntimeError, match="attempt 1101 of 1101"):
        failing._ask(samples(), stopped)
    assert waits == [threading.TIMEOUT_MAX] * 1100
