"""A policy in a `Bond` that takes one step, and what it then computes.

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
from keras_bond.diagnosis import fixtures
from keras_bond.diagnosis.fixtures import SEED
from keras_bond.rollouts import network
from keras_bond.rollouts import supported
from keras_bond.training import Bond
from keras_bond.training.anchored_trainer import COMPLETIONS
from keras_bond.training.learning_rates import USUAL

# Not 1, where a forgotten temperature would not show.
TEMPERATURE = 0.8
# Relative precision of bfloat16. Quantized layers also round what they are
# given: log-probabilities of int8 layers differ by 0.2 nats per token between
# decoding and the parallel pass, without a fault.
BFLOAT16 = 2.0**-8
QUANTIZED = 2.0**-6


class RecordingBond(Bond):
    """A `Bond` that keeps its last batch, with an anchor that disagrees.

    At the start of a run policy and anchor agree and half of the loss is 0, so
    each log-probability of the anchor is shifted by a constant.
    """

    def collect(self, *arguments, **kwargs):
        batch = super().collect(*arguments, **kwargs)
        log_probs = batch["anchor_log_probs"]
        self.cached_log_probs = to_numpy(log_probs)[:, 2:]
        shift = np.random.default_rng(SEED).normal(size=log_probs.shape)
        shift = ops.convert_to_tensor(shift, "float32")
        batch = {**batch, "anchor_log_probs": log_probs + shift}
        self.batch = {name: to_numpy(value) for name, value in batch.items()}
        return batch

    def with_own_callbacks(self, callbacks, verbose):
        # The doctor itself judges log-probabilities that differ.
        return callbacks


class Record(NamedTuple):
    """What a step did, as arrays; `before` and `after` are the weights."""

    batch: dict
    cached_log_probs: np.ndarray
    gradient: list
    before: list
    after: list


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
        vocabulary_size = network.vocabulary_size(policy.backbone)
        self.prompts = fixtures.prompts(vocabulary_size)
        self.precision = precision_of(policy)
        self._kept = [(v, to_numpy(v)) for v in self.trainer.variables]

    def restore(self):
        """Leaves every variable as it was found, bit for bit."""
        for variable, value in self._kept:
            variable.assign(value)

    def train_step(self):
        """Takes a step of `fit` and restores the variables.

        Returns:
            a `Record`.
        """
        # Without a mean over steps, the "momentum" of Adam is the gradient.
        optimizer = keras.optimizers.Adam(USUAL["all weights"], beta_1=0.0)
        with warnings.catch_warnings():
            # Of variables without a gradient.
            warnings.simplefilter("ignore")
            self.trainer.compile(optimizer)
            before = self._weights()
            self.trainer.fit(
                self.prompts,
                batch_size=fixtures.NUM_PROMPTS,
                shuffle=False,
                verbose=0,
                callbacks=[callbacks.AnchorFixed()],
            )
        momentums = (v for v in optimizer.variables if "_momentum" in v.path)
        record = Record(
            self.trainer.batch,
            self.trainer.cached_log_probs,
            [to_numpy(v).astype("float32") for v in momentums],
            before,
            self._weights(),
        )
        self.restore()
        return record

    def _weights(self):
        return [to_numpy(v) for v in self.policy.trainable_variables]

    def draw_first_tokens(self, num_samples):
        """First tokens `(prompts, num_samples)` of drawn completions."""
        samples, _ = self.trainer.draw_scored(
            self.prompts, num_samples, batch_size=2, seed=SEED
        )
        first = [token_ids[0] for token_ids in samples.completion_ids]
        return np.reshape(first, (-1, num_samples))

    def parallel_pass(self, batch):
        """Computes from all tokens at once what decoding computes one by one.

        Returns:
            arrays: log-probabilities `(batch, samples)`, and the
            `logits / temperature` of first tokens `(batch, vocabulary)`.
        """

        def read(batch):
            hidden = self.trainer.reader.hidden(batch, share_prompts=False)
            logits = self.trainer.head.logits(hidden[:, 0, 0])
            log_probs = self.trainer.reader.log_probs(batch, hidden)
            return log_probs, ops.cast(logits, "float32") / TEMPERATURE

        forward = backend.compile_forward(read, self.trainer.variables)
        batch = {
            name: ops.convert_to_tensor(batch[name])
            for name in COMPLETIONS
            if name in batch
        }
        return tuple(map(to_numpy, forward(batch)))

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
                _in_float32(self.policy if in_float32 else None),
                self._moved(direction, step, in_float32),
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
        scope = keras.StatelessScope()
        for v in self.trainer.variables:
            is_float = keras.backend.is_float_dtype(v.dtype)
            dtype = "float32" if in_float32 and is_float else v.dtype
            # A mapping that is given at once is cast to the variables' dtype.
            scope.add_update((v, ops.cast(values[id(v)], dtype)))
        return scope


@contextlib.contextmanager
def _in_float32(policy):
    """Lets the layers of a policy compute in float32, if they can.

    Quantized layers cannot: their dtype policy says how to read their kernels.
    """
    layers = [] if policy is None else policy._flatten_layers()
    layers = [
        layer for layer in layers if not supported.is_quantized_layer(layer)
    ]
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, dtype_policy in zip(layers, before):
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


def precision_of(policy):
    """Relative precision of what a policy computes on this device.

    A product of float32 matrices is off by 1e-7, in the tensor cores of a GPU
    (TF32) or in a TPU's bfloat16 by 1e-4 and more.
    """
    left, right = np.random.default_rng(0).normal(size=(2, 256, 256))
    product = ops.matmul(*(ops.cast(x, "float32") for x in (left, right)))
    error = to_numpy(product) - left @ right
    precision = float(np.std(error) / np.std(left @ right))
    dtypes = {v.dtype for v in policy.trainable_variables}
    if dtypes | {policy.backbone.compute_dtype} != {"float32"}:
        precision = max(precision, BFLOAT16)
    if supported.is_quantized(policy):
        precision = max(precision, QUANTIZED)
    return precision


def to_numpy(value):
    """A NumPy copy of a variable or tensor."""
    return np.array(ops.convert_to_numpy(value))
