"""A policy in a `Bond` that trains briefly, and what it then computes.

All that the doctor uses of trainers is used in this file.
"""

import contextlib
import functools
import warnings
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bond import backend
from keras_bond import callbacks
from keras_bond import rollouts
from keras_bond.diagnosis import fixtures
from keras_bond.diagnosis.fixtures import SEED
from keras_bond.training import Bond

# Not 1, where a forgotten temperature would not show.
TEMPERATURE = 0.8
COMPLETIONS = ("prompt_ids", "prompt_lengths", "completion_ids", "mask")


class RecordingBond(Bond):
    """A `Bond` that keeps its last batch, with an anchor that disagrees.

    At the start of a run policy and anchor agree and half of the loss is 0, so
    each log-probability of the anchor is shifted by a constant.
    """

    def collect(self, *arguments, **kwargs):
        batch = super().collect(*arguments, **kwargs)
        log_probs = batch["anchor_log_probs"]
        self.cached_log_probs = to_numpy(log_probs)
        shift = np.random.default_rng(SEED).normal(size=log_probs.shape)
        shift = ops.convert_to_tensor(shift, "float32")
        batch = {**batch, "anchor_log_probs": log_probs + shift}
        self.batch = {name: to_numpy(value) for name, value in batch.items()}
        return batch


class Record(NamedTuple):
    """What a call of `fit` did: arrays, the last three before and after it."""

    batch: dict
    cached_log_probs: np.ndarray
    trained: tuple
    anchor: tuple
    frozen: tuple


class Testbed:
    """A `keras_hub.models.CausalLM` in a `Bond` of 2 + 2 samples per prompt."""

    def __init__(self, policy):
        has_text = getattr(policy, "preprocessor", None) is not None
        self.policy = policy
        self.trainer = RecordingBond(
            policy,
            fixtures.TokenReward(),
            max_prompt_length=fixtures.PROMPT_LENGTH,
            max_completion_length=fixtures.COMPLETION_LENGTH,
            num_policy_samples=2,
            num_anchor_samples=2,
            kl_weight=1.0,
            reference=False,
            temperature=TEMPERATURE,
            stop_token_ids="auto" if has_text else (1,),
            seed=SEED,
        )
        vocabulary_size = policy.backbone.token_embedding.input_dim
        self.prompts = fixtures.prompts(vocabulary_size)
        self._kept = [(v, to_numpy(v)) for v in self.trainer.variables]
        dtypes = {v.dtype for v in policy.trainable_variables}
        dtypes.add(policy.backbone.compute_dtype)
        self.is_float32 = dtypes == {"float32"}

    @contextlib.contextmanager
    def put_back(self):
        """Leaves every variable as it was found, bit for bit."""
        try:
            yield
        finally:
            for variable, value in self._kept:
                variable.assign(value)

    def train_briefly(self, optimizer, batch_size, update_rate=None):
        """Runs an epoch of `fit`, puts all values back, returns a `Record`.

        With an `update_rate` the anchor starts elsewhere than the policy and
        follows it; without, it stays.
        """
        rule = callbacks.AnchorFixed()
        with self.put_back(), warnings.catch_warnings():
            # Of learning rates and of variables without a gradient.
            warnings.simplefilter("ignore")
            if update_rate is not None:
                rule = callbacks.AnchorEMA(update_rate)
                for value in self.trainer.anchor.values:
                    value.assign(0.9 * value)
            self.trainer.compile(optimizer)
            before = self._values()
            self.trainer.fit(
                self.prompts,
                batch_size=batch_size,
                shuffle=False,
                verbose=0,
                callbacks=[rule],
            )
            return Record(
                self.trainer.batch,
                self.trainer.cached_log_probs[:, 2:],
                *zip(before, self._values()),
            )

    def _values(self):
        return (
            [to_numpy(v) for v in self.policy.trainable_variables],
            [to_numpy(v) for v in self.trainer.anchor.values],
            [to_numpy(v) for v in self.policy.non_trainable_variables],
        )

    def draw_first_tokens(self, num_samples):
        """First tokens `(prompts, num_samples)` of drawn completions."""
        samples, _ = self.trainer.draw_scored(
            self.prompts, num_samples, batch_size=2, seed=SEED
        )
        first = [token_ids[0] for token_ids in samples.completion_ids]
        return np.reshape(first, (-1, num_samples))

    def first_token_logits(self, batch):
        """The policy's `logits / temperature` `(prompts, vocabulary)`."""

        def logits(prompt_ids, prompt_lengths, ids, mask):
            hidden = rollouts.completion_hidden(
                self.policy, prompt_ids, prompt_lengths, ids[:, 0], mask[:, 0]
            )
            logits = self.trainer.head.logits(hidden[:, 0])
            return ops.cast(logits, "float32") / TEMPERATURE

        return self._call(logits, batch)

    def log_probs(self, batch):
        """Log-probabilities `(batch, samples)`, in the parallel pass."""

        def log_probs(*tensors):
            return self.trainer(dict(zip(COMPLETIONS, tensors)))["log_probs"]

        return self._call(log_probs, batch)

    def _call(self, function, batch):
        forward = backend.compile_forward(function, self.trainer.variables)
        tensors = [ops.convert_to_tensor(batch[name]) for name in COMPLETIONS]
        return to_numpy(forward(*tensors))

    def losses_along(self, batch, direction):
        """The whole loss as a function of a step along a direction.

        What is constant for the gradient, all that goes through
        `ops.stop_gradient`, stays what it is at a step of 0. Else the pass is
        in float32 whatever the policy's precision: differences of losses in
        bfloat16 are noise.
        """

        batch = {k: ops.convert_to_tensor(v) for k, v in batch.items()}
        direction = [ops.convert_to_tensor(d, "float32") for d in direction]

        def at(step, constants):
            step = ops.convert_to_tensor(step, "float32")
            return self._compiled_loss(batch, direction, step, constants)

        constants = at(0.0, None)[1]
        return lambda step: float(to_numpy(at(step, constants)[0]))

    @functools.cached_property
    def _compiled_loss(self):
        def loss(batch, direction, step, constants):
            in_float32 = constants is not None
            with (
                self._moved(direction, step, in_float32),
                _precision(self.policy, in_float32),
                _stop_gradients(constants) as stopped,
            ):
                batch = self.trainer.targets(batch)
                outputs = self.trainer(batch)
                loss = self.trainer.compute_loss(x=batch, y_pred=outputs)
            return loss, stopped

        return backend.compile_forward(loss, self.trainer.variables)

    def _moved(self, direction, step, in_float32):
        """A scope in which the trainable variables are a step further."""
        values = {id(v): v.value for v in self.trainer.variables}
        for v, d in zip(self.policy.trainable_variables, direction):
            values[id(v)] = ops.cast(v.value, "float32") + step * d
        policys = {id(v) for v in self.policy.variables}
        scope = keras.StatelessScope()
        for v in self.trainer.variables:
            is_float = keras.backend.is_float_dtype(v.dtype)
            in_full = in_float32 and is_float and id(v) in policys
            value = ops.cast(values[id(v)], "float32" if in_full else v.dtype)
            # A mapping that is given at once is cast to the variables' dtype.
            scope.add_update((v, value))
        return scope


@contextlib.contextmanager
def _precision(policy, in_float32):
    """Lets every layer of `policy` compute in float32 for a while."""
    layers = policy._flatten_layers() if in_float32 else []
    before = [(layer, layer.dtype_policy) for layer in layers]
    try:
        for layer, _ in before:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, dtype_policy in before:
            layer.dtype_policy = dtype_policy


@contextlib.contextmanager
def _stop_gradients(constants):
    """Records what `ops.stop_gradient` returns, or returns a record of it."""
    stop_gradient, stopped = ops.stop_gradient, []
    recorded = None if constants is None else iter(constants)

    def replaced(value):
        value = stop_gradient(value) if recorded is None else next(recorded)
        stopped.append(value)
        return value

    ops.stop_gradient = replaced
    try:
        yield stopped
    finally:
        ops.stop_gradient = stop_gradient


def to_numpy(value):
    """A NumPy copy of a variable or tensor."""
    return np.array(ops.convert_to_numpy(value))
