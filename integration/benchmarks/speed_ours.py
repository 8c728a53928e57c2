"""The contender of this library: `fit` of `keras_bond`, one step a turn."""

import keras
import numpy as np
import speed_backend
import speed_shapes

import keras_bond
from keras_bond.formulas import masks

EPOCHS = 10**6


def run(shape, channel):
    """Trains until there is nothing more to do.

    Args:
        shape: a `speed_shapes.Shape`.
        channel: a `speed_worker.Channel`.
    """
    bond = make_bond(shape, channel)
    notes = bond.notes
    channel.set_threads = speed_backend.thread_setter()
    channel.count_compilations = speed_backend.Compilations(notes.stages)
    channel.handlers.update(
        parts=lambda: time_parts(bond),
        decode=lambda: time_decode(bond, shape),
        memory=lambda: {"temp_bytes": notes.temp_bytes()},
    )
    extras = ["parts", "decode"]
    if keras.config.backend() == "jax":
        extras.append("memory")
    channel.ready(parameters=bond.policy.count_params(), extras=extras)
    bond.fit(
        {"token_ids": speed_shapes.draw_prompts(shape)},
        batch_size=shape.prompts,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[keras_bond.callbacks.AnchorEMA(0.02), Turns(channel)],
    )


def make_bond(shape, channel):
    """The compiled trainer, which tells the channel of its phases."""
    parent = {"jbond": keras_bond.JBond, "bond": keras_bond.Bond}[shape.trainer]
    arguments = {}
    if shape.trainer == "bond":
        arguments = {
            "num_policy_samples": shape.policy_samples,
            "num_anchor_samples": shape.anchor_samples,
        }

    class Measured(Phases, parent):
        """The trainer with a clock at every stage."""

    if shape.stop_share:
        # As many stop tokens, one by one, would be another benchmark.
        last = round(shape.stop_share * shape.vocabulary)
        masks.is_any_of = lambda ids, stops: keras.ops.less(ids, last)
    bond = Measured(
        speed_shapes.build_policy(shape),
        TokenReward(shape),
        max_prompt_length=shape.prompt_length,
        max_completion_length=shape.completion_length,
        stop_token_ids=(),
        reference="auto" if shape.reference else False,
        seed=0,
        channel=channel,
        **arguments,
    )
    bond.compile(optimizer=keras.optimizers.Adam(3e-6))
    return bond


class TokenReward(keras_bond.rewards.Reward):
    """Scores the tokens of a completion, all of which count here."""

    name = "tokens"

    def __init__(self, shape):
        self.prompt_length = shape.prompt_length

    def score(self, samples):
        return speed_shapes.score(samples.token_ids[:, self.prompt_length :])


class Turns(keras.callbacks.Callback):
    """Waits for its turn before each step, and for the device after it."""

    def __init__(self, channel):
        super().__init__()
        self.channel = channel

    def on_train_batch_begin(self, batch, logs=None):
        self.channel.begin()

    def on_train_batch_end(self, batch, logs=None):
        # A logged number leaves the compiled step together with the weights.
        float(logs["loss"])
        self.channel.end()


class Phases:
    """Times the stages of a trainer, whatever they are called.

    Waiting after each takes away what overlaps: these steps are extra ones.
    """

    def __init__(self, *arguments, channel, **kwargs):
        super().__init__(*arguments, **kwargs)
        self.notes = Notes(channel)

    def _stage(self, name, *arguments, **kwargs):
        stage = super()._stage(name, *arguments, **kwargs)
        self.notes.stages[name] = stage
        return lambda *inputs: self.notes.time(name, stage, inputs)

    def score(self, *arguments, **kwargs):
        with self.notes.channel.phase("reward"):
            return super().score(*arguments, **kwargs)

    def targets(self, batch):
        self.notes.keep_targets(batch)
        return super().targets(batch)


class Notes:
    """What is remembered of the steps, out of sight of Keras.

    Attributes:
        channel: a `speed_worker.Channel`.
        stages: dict of compiled functions by name.
        inputs: dict of what they were called with, shapes only; JAX.
        targets: dict of NumPy arrays shaped like a batch for `targets`.
    """

    def __init__(self, channel):
        self.channel = channel
        self.stages = {}
        self.inputs = {}
        self.targets = {}

    def time(self, name, stage, inputs):
        if not self.channel.profiles:
            return stage(*inputs)
        if keras.config.backend() == "jax":
            self.inputs[name] = speed_backend.specs_of(inputs)
        with self.channel.phase(name):
            return speed_backend.wait(stage(*inputs))

    def keep_targets(self, batch):
        for name, tensor in batch.items():
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            self.targets[name] = np.zeros(tuple(tensor.shape), dtype)

    def temp_bytes(self):
        """Bytes that XLA sets aside for each stage."""
        return {
            name: speed_backend.temp_bytes(self.stages[name], specs)
            for name, specs in self.inputs.items()
            if hasattr(self.stages[name], "lower")
        }


def time_parts(bond):
    """What the anchor's update and the targets cost by themselves, compiled.

    Returns:
        dict of seconds.
    """
    sync(bond)
    trained = bond.policy.trainable_variables
    anchor = speed_backend.compile_update(
        lambda: bond.anchor.follow(trained, 1),
        bond.anchor.variables,
        trained,
    )
    targets = speed_backend.compile_pure(
        lambda batch: keras_bond.Bond.targets(bond, batch)
    )
    batch = {
        name: keras.ops.convert_to_tensor(array)
        for name, array in bond.notes.targets.items()
    }
    return {
        "anchor_seconds": speed_backend.seconds_of(anchor),
        "targets_seconds": speed_backend.seconds_of(lambda: targets(batch)),
    }


def time_decode(bond, shape):
    """Draws as many rows with the policy as a step does with both."""
    sync(bond)
    prompts = speed_shapes.draw_prompts(shape)[: shape.prompts]

    def draw():
        bond.generate(
            {"token_ids": prompts},
            num_samples=shape.samples,
            batch_size=shape.prompts,
        )

    return {"decode_seconds": speed_backend.seconds_of(draw)}


def sync(bond):
    """Hands JAX's state back to the variables, which Keras empties in `fit`."""
    if keras.config.backend() == "jax":
        bond.jax_state_sync()
