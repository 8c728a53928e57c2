"""Rewards, the samples that they score, and checks of what they return."""

import asyncio
import dataclasses
import functools
import inspect
import math
import numbers

import keras
import numpy as np

from keras_bond import backend
from keras_bond.arguments import check_list
from keras_bond.arguments import is_number
from keras_bond.rewards import threads

# What of a rollout the rewards are told.
DRAWN = ("completion_ids", "mask", "terminated", "token_ids", "padding_mask")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Completions to be scored, those of one prompt side by side.

    Attributes:
        prompts: list of str, one for each completion; `None` if the policy
            has no tokenizer.
        completions: list of str, without end tokens; `None` as above.
        columns: dict of lists, the other columns of the data set, one entry
            for each completion.
        token_ids: int32 array `(rows, length)`, prompt and completion in one
            row, padded on the right.
        padding_mask: bool array `(rows, length)`, True for real tokens.
        num_samples: int. Completions per prompt.
        completion_ids: list of lists of int, end tokens included, or `None`.
        terminated: bool array `(rows,)`, False for a completion that was
            truncated at the length limit; or `None`.
        tokenizer: the KerasHub tokenizer of `token_ids`, or `None`.
        conversations: list of lists of turns, dicts with `"role"` and
            `"content"`, that `prompts` were rendered from, one for each
            completion; `None` if the prompts were text.
    """

    prompts: list | None
    completions: list | None
    columns: dict
    token_ids: object
    padding_mask: object
    num_samples: int
    completion_ids: list | None = None
    terminated: object = None
    tokenizer: object = None
    conversations: list | None = None

    @classmethod
    def of_rollout(cls, drawn, table, tokenizer):
        """Describes the completions of a rollout.

        Args:
            drawn: dict of arrays over `(prompts, num_samples)`, those of
                `DRAWN`, see `keras_bond.rollouts.Rollout.collate`.
            table: a `keras_bond.data.table.PromptTable` of the prompts.
            tokenizer: a `keras_bond.data.tokenizer.TextTokenizer`, or `None`.

        Returns:
            a `Samples`, those of a prompt side by side.
        """
        num_samples = drawn["mask"].shape[1]
        rows = {k: v.reshape(-1, *v.shape[2:]) for k, v in drawn.items()}
        completion_ids = [
            ids[kept].tolist()
            for ids, kept in zip(rows["completion_ids"], rows["mask"])
        ]
        table = table.repeat(num_samples)
        return cls(
            prompts=table.prompts,
            completions=tokenizer and tokenizer.decode(completion_ids),
            columns=table.columns,
            token_ids=rows["token_ids"],
            padding_mask=rows["padding_mask"],
            num_samples=num_samples,
            completion_ids=completion_ids,
            terminated=rows["terminated"],
            tokenizer=tokenizer and tokenizer.tokenizer,
            conversations=table.conversations,
        )

    def __len__(self):
        return len(self.token_ids)

    def split(self, num_prompts):
        """Splits into parts that keep the completions of a prompt together.

        Args:
            num_prompts: int. Prompts in a part; the last may have fewer.

        Returns:
            list of `Samples`, in order.
        """
        step = num_prompts * self.num_samples
        rows = range(len(self))
        return [
            self.pick(rows[start : start + step], self.num_samples)
            for start in range(0, len(self), step)
        ]

    def pick(self, rows, num_samples=1):
        """Takes some completions.

        Args:
            rows: sequence of int.
            num_samples: int. Completions per prompt among those taken.
                Defaults to 1: each as the only one of its prompt.

        Returns:
            `Samples`, in the order of `rows`.
        """
        rows = list(rows)

        def of(values):
            if values is None or hasattr(values, "shape"):
                return None if values is None else values[rows]
            return [values[row] for row in rows]

        return Samples(
            prompts=of(self.prompts),
            completions=of(self.completions),
            columns={name: of(column) for name, column in self.columns.items()},
            token_ids=of(self.token_ids),
            padding_mask=of(self.padding_mask),
            num_samples=num_samples,
            completion_ids=of(self.completion_ids),
            terminated=of(self.terminated),
            tokenizer=self.tokenizer,
            conversations=of(self.conversations),
        )


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

    A subclass defines `score(samples)`, which returns a float32 array
    `(rows,)`, NaN for completions that it cannot score.

    Attributes:
        name: str. For messages.
        needs_text: bool. Whether it reads strings.
        compares: bool. Whether the score of a completion depends on the others
            of its prompt.
        origin: what the user passed as `reward=`.
    """

    needs_text = False
    compares = False

    @property
    def origin(self):
        return getattr(self, "_origin", self)

    @origin.setter
    def origin(self, origin):
        self._origin = origin

    def __call__(self, samples):
        return self.score(samples)

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

    If prompts are conversations, it gets them as lists of turns, and each
    completion as a list of one turn of the assistant, as in TRL.

    Args:
        function: the callable.

    Raises:
        ValueError: when scoring, if it names a column that the data lack, or
            returns the wrong number of scores or non-finite ones.
        TypeError: when scoring, if it does not return numbers.
    """

    needs_text = True

    def __init__(self, function):
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def score(self, samples):
        values = self.function(**self._accepted(_arguments(samples)))
        if inspect.iscoroutine(values):
            values = _run(values)
        return as_scores(values, self.name, len(samples))

    def _accepted(self, arguments):
        parameters = inspect.signature(self.function).parameters
        kinds = [parameter.kind for parameter in parameters.values()]
        for name, parameter in parameters.items():
            optional = parameter.default is not inspect.Parameter.empty
            variadic = parameter.kind in (
                inspect.Parameter.VAR_KEYWORD,
                inspect.Parameter.VAR_POSITIONAL,
            )
            if name not in arguments and not optional and not variadic:
                raise RewardValueError(
                    f"The reward `{self.name}` asks for `{name}`, which the "
                    "data do not have: pass the prompts as a dict with that "
                    "column. Received: columns "
                    f"{sorted(arguments)}"
                )
        if inspect.Parameter.VAR_KEYWORD in kinds:
            return arguments
        return {k: v for k, v in arguments.items() if k in parameters}


def _arguments(samples):
    arguments = {
        "prompts": samples.prompts,
        "completions": samples.completions,
        "completion_ids": samples.completion_ids,
        **samples.columns,
    }
    if samples.conversations is not None:
        arguments["prompts"] = samples.conversations
        arguments["completions"] = [
            [{"role": "assistant", "content": text}]
            for text in samples.completions
        ]
    return arguments


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
        inputs = self._inputs_of(samples)
        scores = keras.ops.convert_to_numpy(self._forward(inputs))
        return as_scores(scores.astype("float32"), self.name, len(samples))

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
        total = np.zeros(len(samples), "float32")
        counted = np.zeros(len(samples), bool)
        for reward, weight in zip(self.rewards, self.weights):
            scores = reward(samples)
            by_prompt = np.isnan(scores).reshape(-1, samples.num_samples)
            silent = np.repeat(by_prompt.all(axis=1), samples.num_samples)
            total += np.where(silent, 0.0, weight * scores)
            counted |= ~silent
        return np.where(counted, total, np.nan).astype("float32")

    def variables(self):
        return [v for reward in self.rewards for v in reward.variables()]


class RewardError(Exception):
    """A bug in a reward: calling it again would not help."""


class RewardTypeError(RewardError, TypeError):
    """A reward returned something that is not numbers."""


class RewardValueError(RewardError, ValueError):
    """A reward returned wrong numbers, or needs data that are missing."""


def as_scores(values, name, expected):
    """Turns what a reward returned into an array, or raises an error.

    Args:
        values: list, tuple or array of numbers; `None` for "cannot score".
        name: str. Name of the reward, for messages.
        expected: int. Number of completions that were to be scored.

    Returns:
        float32 array `(expected,)`, NaN where the reward returned `None`.

    Raises:
        TypeError: if `values` is not a list of numbers.
        ValueError: if there are too few or too many, or one is not finite.
    """
    values = _as_list(values, name)
    if len(values) != expected:
        raise RewardValueError(
            f"The reward `{name}` must return one number for each completion. "
            f"Received: {len(values)} numbers for {expected} completions"
        )
    return np.array(
        [_as_score(value, name, i) for i, value in enumerate(values)],
        dtype="float32",
    )


def _as_list(values, name):
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if not isinstance(values, (str, bytes, dict)):
        if not isinstance(values, (list, tuple)) and hasattr(
            values, "__array__"
        ):
            values = np.asarray(values)
            values = values.reshape(-1) if values.ndim else values
            values = values.tolist()
        if isinstance(values, (list, tuple)):
            return list(values)
    raise RewardTypeError(
        f"The reward `{name}` must return a list or an array with one number "
        "for each completion. "
        f"Received: {values!r} of type {type(values).__name__}"
    )


def _as_score(value, name, i):
    if value is None:
        return math.nan
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise RewardTypeError(
            f"The reward `{name}` must return numbers, or None for a "
            "completion that it cannot score. "
            f"Received: {value!r} of type {type(value).__name__} for "
            f"completion {i}"
        )
    if not math.isfinite(value):
        raise RewardValueError(
            f"The reward `{name}` must return finite numbers; return None for "
            "a completion that it cannot score. "
            f"Received: {value} for completion {i}"
        )
    return float(value)
