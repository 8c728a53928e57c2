"""A Keras model whose step is Python between separately compiled stages."""

import keras
from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.arguments import check_count
from keras_bond.training import checks
from keras_bond.training import parts as parts_lib
from keras_bond.training.compile_config import CompileConfig


class StagedModel(CompileConfig, backend.StagedTrainer, keras.Model):
    """Says how a step runs: its stages, their order, and in how many parts.

    A child has a `policy`, its sampling `temperature`, the `encoder` of its
    prompts, and the stages themselves: `rollout`, `judge`, `score`, and what
    `keras.Model` learns by.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._stages = {}
        self._compiles_stages = True
        self._jit_compiles_stages = True
        self.rollout_batch_size = None
        self.gradient_accumulation_steps = 1
        self.rematerialize = False
        self.max_skipped_steps = 10

    def compile(
        self,
        optimizer="adam",
        *,
        rollout_batch_size=None,
        gradient_accumulation_steps=1,
        rematerialize=False,
        max_skipped_steps=10,
        run_eagerly=False,
        jit_compile="auto",
        steps_per_execution=1,
        sampler="random",
        auto_scale_loss=True,
    ):
        """Sets the optimizer, and how a step is run. The loss is the trainer's.

        The three arguments behind the optimizer trade memory for time and
        change no result.

        Args:
            optimizer: `keras.optimizers.Optimizer`, or its name. The paper uses
                Adam with a learning rate of 3e-6 and 100 warm-up steps for
                Gemma 2B and 7B.
            rollout_batch_size: int, or `None` for the whole batch. Prompts
                whose completions are drawn at a time: bounds the key-value
                cache. Must divide the batch. Defaults to `None`.
            gradient_accumulation_steps: int. Parts in which a batch is learned
                from: only the activations of one are in memory, at the price
                of one more forward pass. Baselines are those of the whole
                batch, unlike with the optimizer's argument of that name, which
                counts batches. Must divide the batch. Defaults to 1.
            rematerialize: bool. Whether every block of the network keeps only
                its inputs for the backward pass and computes the rest again,
                at the price of one more forward pass. XLA on a CPU undoes it.
                Defaults to False.
            max_skipped_steps: int. A step with a loss or gradient that is not
                finite is left out; training ends with an error after this
                many in a row. Defaults to 10.
            run_eagerly: bool. Whether to run the stages of a step uncompiled,
                for debugging. Defaults to False.
            jit_compile: bool or `"auto"`. Whether TensorFlow compiles the
                stages with XLA; JAX always does. Defaults to `"auto"`: yes.
            steps_per_execution: int. See `keras.Model.compile`.
            sampler: `"random"`, the only law that the losses hold for.
            auto_scale_loss: bool. See `keras.Model.compile`.

        Raises:
            ValueError: if the optimizer cannot move the policy's variables,
                `sampler` does not draw from the full distribution, or a number
                is out of its range.
        """
        checks.check_sampler(sampler, self.temperature)
        optimizer = keras.optimizers.get(optimizer)
        checks.check_optimizer(optimizer, self.policy.trainable_variables)
        checks.warn_high_learning_rate(optimizer)
        if rollout_batch_size is not None:
            check_count("rollout_batch_size", rollout_batch_size, 1)
        check_count(
            "gradient_accumulation_steps", gradient_accumulation_steps, 1
        )
        check_count("max_skipped_steps", max_skipped_steps, 1)
        # The step itself is Python between compiled stages, on every backend.
        super().compile(
            optimizer=optimizer,
            run_eagerly=True,
            jit_compile=False,
            steps_per_execution=steps_per_execution,
            auto_scale_loss=auto_scale_loss,
        )
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        self.rollout_batch_size = rollout_batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.rematerialize = rematerialize
        self.max_skipped_steps = max_skipped_steps
        self._compiles_stages = not run_eagerly
        self._jit_compiles_stages = jit_compile in ("auto", True)
        self._stages = {}
        self._compile_arguments = {
            "rollout_batch_size": rollout_batch_size,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "rematerialize": rematerialize,
            "max_skipped_steps": max_skipped_steps,
            "run_eagerly": run_eagerly,
            "jit_compile": jit_compile,
            "steps_per_execution": steps_per_execution,
            "auto_scale_loss": auto_scale_loss,
        }

    def collect(self, run, inputs, training):
        """Rolls out a batch of prompts, and has it judged and scored.

        The device gets all its work before the host scores anything: where it
        works ahead of the host, the reward of one part is computed while the
        next part is rolled out.

        Args:
            run: callable `run(name, function, *tensors)` that calls the
                function as a compiled stage.
            inputs: dict of tensors `(batch, ...)`, a batch of prompts.
            training: bool.

        Returns:
            dict of tensors, see `rollout`, `judge` and `score`.
        """
        parts = self._rollout_parts(self.encoder.cut(inputs))
        rollouts = [self.rollout(run, part, training) for part in parts]
        judged = [
            self.judge(run, part, rollout, training)
            for part, rollout in zip(parts, rollouts)
        ]
        scored = [
            {**self.score(part, rollout, training), **judgement}
            for part, rollout, judgement in zip(parts, rollouts, judged)
        ]
        if len(scored) == 1:
            return scored[0]
        stacked = tree.map_structure(lambda *x: ops.stack(x), *scored)
        return parts_lib.join(stacked)

    def check_skipped(self, skipped_in_a_row):
        """Ends a training that cannot go on; the weights are the last good.

        Called where the device has long finished the step before, so that
        nothing waits for the answer.

        Args:
            skipped_in_a_row: int scalar tensor.

        Raises:
            FloatingPointError: if too many steps were left out.
        """
        skipped = int(ops.convert_to_numpy(skipped_in_a_row))
        if skipped >= self.max_skipped_steps:
            raise FloatingPointError(
                "Loss and gradients must be finite: lower the learning rate, "
                "warm it up, or look for what overflows with "
                "`compile(run_eagerly=True)`. The weights are those of the "
                f"last good step. Received: {skipped} steps in a row that were "
                f"not, max_skipped_steps={self.max_skipped_steps}"
            )

    def _rollout_parts(self, inputs):
        batch_size = inputs["prompt_index"].shape[0]
        size = self.rollout_batch_size or batch_size
        parts_lib.check_divides("rollout_batch_size", size, batch_size)
        num_parts = batch_size // size
        if num_parts == 1:
            return [inputs]
        parts_lib.check_spreads("rollout_batch_size", size, size)
        parts = parts_lib.split(inputs, num_parts)
        return [
            tree.map_structure(lambda x, i=i: x[i], parts)
            for i in range(num_parts)
        ]

    def in_parts(self, function, inputs):
        """Applies a function to a batch, in `gradient_accumulation_steps`.

        Args:
            function: callable that takes a dict of tensors and returns one.
            inputs: dict of tensors `(batch, ...)`.

        Returns:
            dict of tensors `(batch, ...)`.
        """
        steps = self.gradient_accumulation_steps
        if steps == 1:
            return function(inputs)
        batch_size = next(iter(inputs.values())).shape[0]
        name = "gradient_accumulation_steps"
        parts_lib.check_divides(name, steps, batch_size)
        parts_lib.check_spreads(name, steps, batch_size // steps)
        parts = parts_lib.split(inputs, steps)
        return parts_lib.join(
            backend.map_parts(function, parts, self.variables)
        )
