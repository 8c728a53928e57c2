"""The stages of a training step, compiled for weights that do not exist."""

import contextlib
import dataclasses
import re
import time
import unittest.mock

import jax
import keras
import numpy as np

import keras_bond
from keras_bond.backend import devices as rows_lib
from keras_bond.training.anchored_trainer import NOT_LEARNED_FROM

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the compiler says of one stage, per chip.

    Attributes:
        name: str.
        arguments, temporary, peak: int. Bytes: what comes in, what is set
            aside, and both with the results that do not reuse arguments.
        flops, accessed: float. Operations, and bytes moved; the body of a loop
            counts once.
        collectives: dict from each kind to how often it stands in the program;
            `"not told"` where the compiler does not print it.
        seconds: float. Taken by the compiler.
    """

    name: str
    arguments: int
    temporary: int
    peak: int
    flops: float
    accessed: float
    collectives: dict
    seconds: float


def abstract_trainer(build, mesh_shape, chips, compile_arguments, **arguments):
    """A `keras_bond.JBond` whose variables have shapes and places only.

    Args:
        build: callable that returns the policy.
        mesh_shape: `(rows, weights)`, or `None` for one chip.
        chips: list of devices to compile for.
        compile_arguments: dict, for `compile`.
        **arguments: for `keras_bond.JBond`.

    Returns:
        the trainer.
    """
    trainer = None
    keras.distribution.set_distribution(None)
    # Made here, of real numbers, for its learning rate is looked at.
    optimizer = keras.optimizers.Adam(3e-6)
    if mesh_shape is not None:
        mesh = keras.distribution.DeviceMesh(
            mesh_shape, ("batch", "model"), np.array(chips).reshape(mesh_shape)
        )
        keras.distribution.set_distribution(
            keras_bond.distribution.ModelParallel(mesh)
        )

    def make():
        nonlocal trainer
        trainer = keras_bond.JBond(build(), _no_reward, **arguments)
        trainer.compile(optimizer, **compile_arguments)
        return 0

    with seen_as(chips):
        jax.eval_shape(make)
    for variable in [
        *trainer.variables,
        *optimizer.variables,
        *trainer.metrics_variables,
    ]:
        place = _place(variable, chips)
        variable._value = jax.ShapeDtypeStruct(
            variable.shape,
            keras.backend.standardize_dtype(variable.dtype),
            sharding=place,
        )
    return trainer


class NoReward(keras.Layer):
    """Stands for a reward, which does not run on the chips."""

    def call(self, inputs):
        return inputs["token_ids"][:, 0]


_no_reward = NoReward()


def _place(variable, chips):
    layout = rows_lib.layout_of(variable)
    if layout is None:
        return jax.sharding.SingleDeviceSharding(chips[0])
    return layout.backend_layout


@contextlib.contextmanager
def seen_as(chips):
    """Keras and KerasHub choose their attention by the device they see."""
    with (
        unittest.mock.patch.object(jax, "devices", lambda *_, **__: chips),
        unittest.mock.patch.object(jax, "default_backend", lambda: "tpu"),
    ):
        yield


def compile_step(trainer, batch_size, chips, report):
    """Compiles a step stage by stage, from prompts to the anchor's update.

    Args:
        trainer: what `abstract_trainer` returned.
        batch_size: int. Prompts a step, over all chips.
        chips: list of devices.
        report: callable that is given each `Stage` as soon as it is there.
    """
    state = [
        [v.value for v in variables]
        for variables in (
            trainer.trainable_variables,
            trainer.non_trainable_variables,
            trainer.optimizer.variables,
            trainer.metrics_variables,
        )
    ]

    def run_stage(name, function, *tensors):
        stage = jax.jit(trainer._stateless(function))
        return finish(name, stage, state[0], state[1], *tensors)

    def finish(name, stage, *arguments):
        with seen_as(chips):
            lowered = stage.lower(*arguments)
        began = time.time()
        compiled = lowered.compile()
        report(_describe(name, compiled, time.time() - began))
        return jax.tree.map(_placed_rows(chips), lowered.out_info)

    part = trainer.rollout_batch_size or batch_size
    inputs = _prompts(trainer, part, chips)
    trainer.run_stage = run_stage
    drawn = {**inputs, **trainer.draw(inputs, training=True)}
    known = trainer.score_with_anchor(drawn, training=True)
    batch = _scored({**drawn, **known}, batch_size, chips)
    places = jax.tree.map(lambda value: value.sharding, state)
    learn = jax.jit(
        trainer._learn, donate_argnums=0, out_shardings=(None, tuple(places))
    )
    finish("learn, anchor", learn, tuple(state), batch)


def _placed_rows(chips):
    """Gives abstract tensors of a batch their place."""

    def place(value):
        distribution = keras.distribution.distribution()
        if distribution is None or not value.shape:
            where = jax.sharding.SingleDeviceSharding(chips[0])
        else:
            where = distribution.get_data_layout(value.shape).backend_layout
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where)

    return place


def _prompts(trainer, rows, chips):
    shapes = {
        "prompt_ids": (rows, trainer.max_prompt_length),
        "prompt_lengths": (rows,),
        "prompt_index": (rows,),
        "index_in_batch": (rows,),
    }
    place = _placed_rows(chips)
    return {
        name: place(jax.ShapeDtypeStruct(shape, "int32"))
        for name, shape in shapes.items()
    }


def _scored(batch, batch_size, chips):
    """What is learned from, of the whole batch: with rewards and flags."""
    place = _placed_rows(chips)
    tensors = {
        name: place(jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype))
        for name, x in batch.items()
        if name not in NOT_LEARNED_FROM
    }
    samples = batch["mask"].shape[1]
    for name, shape, dtype in (
        ("rewards", (batch_size, samples), "float32"),
        ("reward_residuals", (batch_size, samples), "float32"),
        ("ranks", (batch_size, samples), "float32"),
        ("present", (batch_size,), "bool"),
        ("valid", (batch_size,), "bool"),
    ):
        tensors[name] = place(jax.ShapeDtypeStruct(shape, dtype))
    return tensors


def _describe(name, compiled, seconds):
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Stage(
        name=name,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + results,
        flops=cost.get("flops", 0.0),
        accessed=cost.get("bytes accessed", 0.0),
        collectives=_collectives(compiled),
        seconds=seconds,
    )


def _collectives(compiled):
    try:
        program = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        # JAX 0.10 cannot print some programs for a v6e.
        return {"not told": 0}
    counts = {
        kind: len(re.findall(rf"= \S+ {kind}(?:-start)?\(", program))
        for kind in COLLECTIVES
    }
    return {kind: count for kind, count in counts.items() if count}
