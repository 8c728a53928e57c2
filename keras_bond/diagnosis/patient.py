"""What is examined: a policy in a `Bond`, and how it learns for a moment."""

import contextlib
import dataclasses
import logging
import warnings

import keras
import numpy as np
from keras import ops

from keras_bond import callbacks
from keras_bond.diagnosis import stand_ins
from keras_bond.diagnosis.stand_ins import NUM_PROMPTS
from keras_bond.diagnosis.stand_ins import PROMPT_LENGTH
from keras_bond.diagnosis.stand_ins import SEED
from keras_bond.training import Bond

COMPLETION_LENGTH = 6
# Other than 1, or a forgotten temperature would not show.
TEMPERATURE = 0.8
# Most values that a trace keeps of a variable.
TRACED_VALUES = 4096


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What happened in a call of `fit`.

    Attributes:
        batches: list of dicts of arrays: what each step learned from.
        after: list of arrays: `Patient.trained` at the end.
        policies, anchors: lists over steps, the start first, of lists of
            float32 arrays: some values of each trained variable of the policy.
        frozen_moved: int. Frozen variables of the policy that changed.
        logs: dict of the numbers logged last.
    """

    batches: list
    after: list
    policies: list
    anchors: list
    frozen_moved: int
    logs: dict


class Probe(Bond):
    """A `Bond` that keeps its rollouts: compiled, and what came out."""

    def __init__(self, *arguments, on_batch, **kwargs):
        super().__init__(*arguments, **kwargs)
        self.on_batch = on_batch

    def compile(self, *arguments, **kwargs):
        # How a batch is drawn does not change with what is learned from it.
        kept = {k: v for k, v in self._stages.items() if k != "learn"}
        super().compile(*arguments, **kwargs)
        self._stages.update(kept)

    def collect(self, run, inputs, training):
        batch = super().collect(run, inputs, training)
        self.on_batch({k: to_numpy(v) for k, v in batch.items()})
        return batch


class Patient:
    """A policy in a `Bond` of 2 + 2 samples, on which all is tried.

    Args:
        policy: a `keras_hub.models.CausalLM`.

    Raises:
        TypeError, ValueError: see `keras_bond.Bond`.
    """

    def __init__(self, policy):
        has_text = getattr(policy, "preprocessor", None) is not None
        self.policy = policy
        self.batches = []
        self.bond = Probe(
            policy,
            stand_ins.AnyReward(),
            on_batch=lambda batch: self.batches.append(batch),
            max_prompt_length=PROMPT_LENGTH,
            max_completion_length=COMPLETION_LENGTH,
            num_policy_samples=2,
            num_anchor_samples=2,
            quantiles="learned",
            kl_weight=1.0,
            reference=False,
            temperature=TEMPERATURE,
            stop_token_ids="auto" if has_text else (1,),
            seed=SEED,
        )
        head = self.bond.quantile_model
        self.head = [*head.hidden.variables, *head.logits.variables]
        self.trained = [*policy.trainable_variables, *self.head]
        vocabulary_size = policy.backbone.token_embedding.input_dim
        self.prompts = stand_ins.prompts(vocabulary_size)
        generator = np.random.default_rng(SEED)
        for value in self.head:
            value.assign(0.3 * generator.normal(size=value.shape))
        self.keep()

    def keep(self):
        """Takes the present values for those to put back."""
        self._kept = [(v, to_numpy(v)) for v in self.bond.variables]

    @property
    def is_float32(self):
        """Whether the policy both keeps and computes in float32."""
        dtypes = {v.dtype for v in self.policy.trainable_variables}
        return dtypes | {self.policy.backbone.compute_dtype} == {"float32"}

    def learn(self, optimizer, rule=None, batch_size=NUM_PROMPTS, epochs=1):
        """Runs `fit`, and puts all values back.

        Args:
            optimizer: `keras.optimizers.Optimizer`.
            rule: a `keras_bond.callbacks.AnchorRule`; by default it stays.
            batch_size: int.
            epochs: int.

        Returns:
            a `Lesson`.
        """
        trace, frozen = _Trace(), self.policy.non_trainable_variables
        before = [to_numpy(variable) for variable in frozen]
        self.batches.clear()
        with self.put_back(), _quietly():
            self.bond.compile(optimizer)
            history = self.bond.fit(
                self.prompts,
                batch_size=batch_size,
                epochs=epochs,
                shuffle=False,
                verbose=0,
                callbacks=[rule or callbacks.AnchorFixed(), trace],
            )
            return Lesson(
                batches=list(self.batches),
                after=[to_numpy(v) for v in self.trained],
                policies=trace.policies,
                anchors=trace.anchors,
                frozen_moved=sum(
                    not np.array_equal(to_numpy(variable), old)
                    for variable, old in zip(frozen, before)
                ),
                logs={k: v[-1] for k, v in history.history.items()},
            )

    @contextlib.contextmanager
    def put_back(self):
        """Leaves every variable as it was found, bit for bit."""
        try:
            yield
        finally:
            for variable, value in self._kept:
                variable.assign(value)


@contextlib.contextmanager
def _quietly():
    """No word on learning rates, missing gradients and many compilations."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Trace(keras.callbacks.Callback):
    """Keeps some values of policy and anchor after every step."""

    def on_train_begin(self, logs=None):
        self.policies, self.anchors = [], []
        self.on_train_batch_end(0)

    def on_train_batch_end(self, batch, logs=None):
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()
        trained = self.model.policy.trainable_variables
        self.policies.append([_some(v) for v in trained])
        self.anchors.append([_some(v) for v in self.model.anchor.values])


def _some(variable):
    flat = to_numpy(variable).reshape(-1)
    return flat[:: -(-flat.size // TRACED_VALUES)].astype("float32")


def size_of(variable):
    """Root mean square of the values, or 0.01 for a variable of zeros."""
    values = to_numpy(variable).astype("float32")
    return float(np.sqrt(np.mean(values**2))) or 0.01


def to_numpy(value):
    """A NumPy copy of a variable or tensor."""
    return np.array(ops.convert_to_numpy(value))
