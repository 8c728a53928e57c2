"""Rewards: functions, models and weighted sums of them."""

import asyncio
import collections
import functools
import inspect
import math

import keras
import numpy as np

from keras_bond import backend
from keras_bond.arguments import check_list
from keras_bond.arguments import is_number
from keras_bond.rewards import threads
from keras_bond.rewards.samples import IMAGES
from keras_bond.rewards.samples import LOG_NAMES
from keras_bond.rewards.samples import Logger
from keras_bond.rewards.scores import RewardValueError
from keras_bond.rewards.scores import as_scores
from keras_bond.rewards.scores import check_scores
from keras_bond.turns import is_answer


def get(reward, reward_weights=None):
    """Turns what a user passes as `reward=` into a `Reward`.

    Args:
        reward: a callable, a `keras.Layer` or `keras.Model`, a `Reward`, or a
            list of these.
        reward_weights: list of float, one for each entry of the list, or
            `None` for ones.

    Returns:
        a `Reward`.

    Raises:
        TypeError: if `reward` is none of these.
        ValueError: if the number of weights differs from that of rewards.
    """
    if reward_weights is not None and not isinstance(reward, (list, tuple)):
        raise ValueError(
            "`reward_weights` goes with a list of rewards. Received: "
            f"reward={reward!r}, reward_weights={reward_weights}"
        )
    if isinstance(reward, Reward):
        return reward
    scorer = _wrap(reward, reward_weights)
    scorer.origin = reward
    return scorer


def _wrap(reward, reward_weights):
    if isinstance(reward, (list, tuple)):
        return WeightedRewards([get(part) for part in reward], reward_weights)
    if isinstance(reward, keras.Layer):
        return ModelReward(reward)
    if callable(reward):
        return FunctionReward(reward)
    raise TypeError(
        "`reward` must be a function `reward(prompts, completions, **columns)`"
        ", a Keras model or layer that scores token ids, or a list of these. "
        f"Received: reward={reward!r} of type {type(reward).__name__}"
    )


class Reward:
    """Scores completions.

    A subclass defines `score(samples)`, which returns a float64 array
    `(rows,)`, NaN for completions that it cannot score. It may change the
    samples, which are a copy of its own.

    Attributes:
        name: str. For messages; the name of the class unless it is set.
        needs_text: bool. Whether it reads strings.
        compares: bool. Whether the score of a completion depends on the others
            of its prompt.
        origin: what the user passed as `reward=`.
    """

    needs_text = False
    compares = False

    @property
    def name(self):
        return getattr(self, "_name", type(self).__name__)

    @name.setter
    def name(self, name):
        self._name = name

    @property
    def origin(self):
        return getattr(self, "_origin", self)

    @origin.setter
    def origin(self, origin):
        self._origin = origin

    def __call__(self, samples):
        """Scores copies of some samples, and checks the scores.

        Returns:
            float64 array `(rows,)`, NaN for completions without a score.

        Raises:
            ValueError: if scores are infinite, too large or too few.
        """
        scores = self.score(samples.copy())
        return check_scores(scores, self.name, len(samples))

    def variables(self):
        """Variables of the models inside, none by default."""
        return []


class Wrapper(Reward):
    """A reward around another; a subclass defines `score`.

    Args:
        reward: what `keras_bond.rewards.get` takes.
    """

    def __init__(self, reward):
        self.reward = get(reward)
        self.name = self.reward.name
        self.needs_text = self.reward.needs_text
        self.compares = self.reward.compares

    def variables(self):
        return self.reward.variables()

    def get_config(self):
        origin = self.reward.origin
        return {"reward": keras.saving.serialize_keras_object(origin)}

    @classmethod
    def from_config(cls, config):
        reward = keras.saving.deserialize_keras_object(config["reward"])
        return cls(**{**config, "reward": reward})


class FunctionReward(Reward):
    """A Python function with the signature of TRL's reward functions.

    `function(prompts, completions, **columns)` takes lists of equal length
    and returns one number for each completion, or `None` for one that it
    cannot score. It gets those columns of the data set that it names, all of
    them if it has `**columns`, and `completion_ids`. It may be an `async def`.

    As in TRL, it also gets `log_metric(name, value)` and `log_extra(column,
    values)` if it names them or has `**columns`. TRL's `trainer_state` is not
    passed: a completion has the same reward at every step.

    If prompts are conversations, it gets them as lists of turns, and each
    completion as a list of one turn of the assistant, as in TRL: an answer that
    has begun in the prompt is part of that turn.

    Args:
        function: the callable.

    Raises:
        ValueError: if it needs `trainer_state`; when scoring, if it names a
            column that the data lack, or returns the wrong number of scores,
            or scores that are not finite or too large.
        TypeError: when scoring, if it does not return numbers.
    """

    needs_text = True

    def __init__(self, function):
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        _parameters_of(function, self.name)

    def score(self, samples):
        values = self.function(**self._arguments(samples))
        if inspect.iscoroutine(values):
            values = _run(values)
        return as_scores(values, self.name, len(samples))

    def _arguments(self, samples):
        logger = Logger(self.name, samples.log, len(samples))
        arguments = {
            "prompts": samples.prompts,
            "completions": samples.completions,
            "completion_ids": samples.completion_ids,
            **samples.columns,
            **{name: getattr(logger, name) for name in LOG_NAMES},
        }
        if samples.conversations is not None:
            asked, begun = zip(*map(_split_begun, samples.conversations))
            arguments["prompts"] = list(asked)
            arguments["completions"] = [
                [{"role": "assistant", "content": start + text}]
                for start, text in zip(begun, samples.completions)
            ]
        parameters = _parameters_of(self.function, self.name)
        for name in _required(parameters):
            if name not in arguments:
                raise RewardValueError(
                    f"The reward `{self.name}` asks for `{name}`, which the "
                    "data do not have: pass the prompts as a dict with that "
                    f"column. Received: columns {sorted(samples.columns)}"
                )
        kinds = [parameter.kind for parameter in parameters.values()]
        if inspect.Parameter.VAR_KEYWORD in kinds:
            return arguments
        return {k: v for k, v in arguments.items() if k in parameters}


def _split_begun(turns):
    """Splits a conversation into its turns and the answer that has begun."""
    if is_answer(turns[-1]):
        return turns[:-1], turns[-1]["content"]
    return turns, ""


def _parameters_of(function, name):
    """The parameters of a reward function.

    Raises:
        ValueError: if they are unknown, or ask for the state of a trainer.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:
        raise RewardValueError(
            f"The reward `{name}` must be a function whose arguments Python "
            "knows: wrap it, as in lambda prompts, completions: ... "
            f"Received: {error}"
        ) from None
    kinds = [parameter.kind for parameter in parameters.values()]
    if inspect.Parameter.POSITIONAL_ONLY in kinds:
        raise RewardValueError(
            f"The reward `{name}` must take its arguments by name: leave out "
            f"the `/` of its signature. Received: {name}"
            f"{inspect.signature(function)}"
        )
    if "trainer_state" in _required(parameters):
        raise RewardValueError(
            f"The reward `{name}` must not need `trainer_state`: a completion "
            "has the same reward at every step, so that scores can be saved "
            "and runs compared. Give it a default, `trainer_state=None`, and "
            "to change the reward during training, set `bond.reward` between "
            f"two calls of `fit`. Received: {name}({', '.join(parameters)})"
        )
    return parameters


def _required(parameters):
    variadic = (
        inspect.Parameter.VAR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in variadic
    ]


def _run(coroutine):
    """Runs a coroutine, also while an event loop runs, as in a notebook."""
    run = functools.partial(asyncio.run, coroutine)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    return threads.start(run).result()


class ModelReward(Reward):
    """A Keras model or layer that scores token ids on the device.

    It is called with `{"token_ids", "padding_mask"}`, the input of KerasHub's
    models: prompt and completion in one row, `(rows, length)`, padded on the
    right. It returns `(rows,)` or `(rows, 1)`.

    It does not see images: prompts that have them raise an error.

    If the model has a method `reward_inputs(samples)`, it is called with what
    that returns: `keras_bond.RewardModel` has a tokenizer of its own.

    Args:
        model: the `keras.Layer`.
    """

    def __init__(self, model):
        self.model = model
        self.name = model.name
        self._forward = backend.compile_forward(
            lambda inputs: model(inputs, training=False), model.variables
        )

        self._inputs_of = getattr(model, "reward_inputs", _token_inputs)

    def __reduce__(self):
        # What was compiled has the weights of the original.
        return get, (self.model,)

    def score(self, samples):
        if IMAGES in samples.columns:
            raise RewardValueError(
                "A Keras model that scores completions reads text, without "
                "the images of the prompts: pass a function, `reward(prompts, "
                f"completions, {IMAGES})`, that calls one which sees them. "
                f"Received: reward=`{self.name}`, data with a column "
                f"`{IMAGES}`"
            )
        inputs = self._inputs_of(samples)
        return as_scores(self._forward(inputs), self.name, len(samples))

    def variables(self):
        return self.model.variables


def _token_inputs(samples):
    return {
        "token_ids": samples.token_ids,
        "padding_mask": samples.padding_mask,
    }


class WeightedRewards(Reward):
    """A weighted sum of rewards.

    A reward that can score none of a prompt's completions does not count for
    that prompt, as in TRL. If it can score only some of them, they cannot be
    compared, and the prompt is masked out.

    Args:
        rewards: list of `Reward`.
        weights: list of float, or `None` for ones.

    Raises:
        ValueError: if the lists are empty or differ in length.
    """

    compares = True

    def __init__(self, rewards, weights=None):
        if not rewards:
            raise ValueError(
                "`reward` must hold at least one reward. Received: reward=[]"
            )
        if weights is None:
            weights = [1.0] * len(rewards)
        check_list("reward_weights", weights, "numbers")
        if len(weights) != len(rewards) or not all(map(is_number, weights)):
            raise ValueError(
                "`reward_weights` must have one weight for each reward, "
                "a finite number. "
                f"Received: reward_weights={weights}, {len(weights)} weights "
                f"for {len(rewards)} rewards"
            )
        self.rewards = rewards
        self.weights = [float(weight) for weight in weights]
        self.name = "+".join(reward.name for reward in rewards)
        self.needs_text = any(reward.needs_text for reward in rewards)

    def score(self, samples):
        total = np.zeros(len(samples))
        counted = np.zeros(len(samples), bool)
        parts = scores_of_parts(self.rewards, samples)
        for reward, weight, scores in zip(self.rewards, self.weights, parts):
            with np.errstate(over="ignore"):
                scores = weight * scores
            scores = check_scores(scores, reward.name, len(samples))
            by_prompt = np.isnan(scores).reshape(-1, samples.num_samples)
            silent = np.repeat(by_prompt.all(axis=1), samples.num_samples)
            total += np.where(silent, 0.0, scores)
            counted |= ~silent
        return np.where(counted, total, np.nan)

    def variables(self):
        return [v for reward in self.rewards for v in reward.variables()]


def scores_of_parts(rewards, samples):
    """Scores samples by each reward of a list, and logs the means.

    They are logged as `NAME/mean`, over all completions that the reward could
    score; a second reward of the same name is `NAME_2`.

    Args:
        rewards: list of `Reward`.
        samples: `Samples`.

    Yields:
        float64 array `(rows,)` of each reward, NaN where it has no score.
    """
    seen = collections.Counter()
    for reward in rewards:
        scores = np.asarray(reward(samples), "float64")
        seen[reward.name] += 1
        repeated = f"_{seen[reward.name]}" if seen[reward.name] > 1 else ""
        known = scores[~np.isnan(scores)]
        mean = float(known.mean()) if known.size else math.nan
        name = f"{reward.name}{repeated}/mean"
        samples.log.metrics.setdefault(name, []).append(mean)
        yield scores
