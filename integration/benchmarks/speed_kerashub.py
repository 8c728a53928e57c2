"""J-BOND as one writes it with KerasHub alone: the straightforward loop.

Two models, `generate` for each of the three samples, a loss on the logits of
whole rows, an anchor that is assigned variable by variable.
"""

import math

import keras
import numpy as np
import speed_backend
import speed_shapes
from keras import ops

UPDATE_RATE = 0.02
JEFFREYS_BETA = 0.5


def run(shape, channel):
    """Trains until there is nothing more to do.

    Args:
        shape: a `speed_shapes.Shape`.
        channel: a `speed_worker.Channel`.
    """
    loop = Loop(shape, channel)
    channel.set_threads = speed_backend.thread_setter()
    channel.count_compilations = speed_backend.Compilations()
    channel.ready(parameters=loop.policy.count_params())
    prompts = speed_shapes.draw_prompts(shape)
    while True:
        for start in range(0, len(prompts), shape.prompts):
            channel.begin()
            loop.step(prompts[start : start + shape.prompts])
            channel.end()


class Loop:
    """Policy, anchor and the step.

    Args:
        shape: a `speed_shapes.Shape`.
        channel: a `speed_worker.Channel`, which is told of the phases.
    """

    def __init__(self, shape, channel):
        self.shape = shape
        self.channel = channel
        self.policy = speed_shapes.build_policy(shape)
        self.anchor = speed_shapes.build_policy(shape)
        self.anchor.set_weights(self.policy.get_weights())
        self.policy.compile(sampler="random")
        self.anchor.compile(sampler="random")
        self.pairs = [
            (policy, anchor)
            for policy, anchor in zip(
                self.policy.variables, self.anchor.variables
            )
            if policy.trainable
        ]
        self.anchor.trainable = False
        self.learner = PlainJBond(self.policy, self.anchor, shape)
        self.learner.compile(optimizer=keras.optimizers.Adam(3e-6))

    def step(self, prompts):
        """Draws, scores, learns, and lets the anchor follow.

        Args:
            prompts: int32 array `(prompts, prompt_length)`.
        """
        with self.channel.phase("rollout policy"):
            policy_rows = self.draw(self.policy, prompts)
        with self.channel.phase("rollout anchor"):
            anchor_rows = [
                self.draw(self.anchor, prompts)
                for _ in range(self.shape.anchor_samples)
            ]
        with self.channel.phase("reward"):
            batch = self.score(policy_rows, anchor_rows)
        with self.channel.phase("learn"):
            self.learner.train_on_batch(batch)
            if self.channel.profiles:
                speed_backend.wait([policy.value for policy, _ in self.pairs])
        with self.channel.phase("anchor"):
            self.follow()

    def draw(self, model, prompts):
        """Completes each prompt once.

        Returns:
            int32 array `(prompts, prompt_length + completion_length)`.
        """
        padding = [(0, 0), (0, self.shape.completion_length)]
        inputs = {
            "token_ids": np.pad(prompts, padding),
            "padding_mask": np.pad(np.ones_like(prompts, bool), padding),
        }
        # What `generate` calls, which itself wants a preprocessor for Gemma 3.
        generate = model.make_generate_function()
        drawn = generate(
            {k: ops.convert_to_tensor(v) for k, v in inputs.items()},
            stop_token_ids=None,
        )
        return ops.convert_to_numpy(drawn["token_ids"])

    def score(self, policy_rows, anchor_rows):
        """What is learned from: the policy's rows, the better anchor rows, and
        which of the former are worse than all of the latter."""
        start = self.shape.prompt_length
        rewards = speed_shapes.score(policy_rows[:, start:])
        others = np.stack(
            [speed_shapes.score(t[:, start:]) for t in anchor_rows]
        )
        best = np.stack(anchor_rows)[
            others.argmax(axis=0), np.arange(len(policy_rows))
        ]
        return {
            "policy_rows": policy_rows,
            "best_rows": best,
            "penalized": rewards < others.min(axis=0),
        }

    def follow(self):
        """`θ_anchor ← (1 - η) θ_anchor + η θ`, one variable after the other."""
        for policy, anchor in self.pairs:
            anchor.assign(
                (1.0 - UPDATE_RATE) * anchor.value + UPDATE_RATE * policy.value
            )
        speed_backend.wait([anchor.value for _, anchor in self.pairs])


class PlainJBond(keras.Model):
    """The loss of J-BOND on the logits of whole rows.

    Args:
        policy, anchor: `keras_hub.models.Gemma3CausalLM` each.
        shape: a `speed_shapes.Shape`.
    """

    def __init__(self, policy, anchor, shape):
        super().__init__()
        self.policy = policy
        self.anchor = anchor
        self.prompt_length = shape.prompt_length

    def call(self, inputs):
        """Returns logits `(rows, length, vocabulary)` of policy and anchor."""
        policy, best = inputs["policy_rows"], inputs["best_rows"]
        rows = ops.concatenate([policy, best], axis=0)
        return {
            "policy": logits_of(self.policy, rows),
            "anchor": ops.stop_gradient(logits_of(self.anchor, policy)),
        }

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """`(1 - β) forward + β backward`, algorithm 2 with `γ = 0`."""
        count = x["policy_rows"].shape[0]
        rows = ops.concatenate([x["policy_rows"], x["best_rows"]], axis=0)
        log_probs = self.log_probs(y_pred["policy"], rows)
        policy, best = log_probs[:count], log_probs[count:]
        anchor = self.log_probs(y_pred["anchor"], x["policy_rows"])
        rewards = -math.log(16.0) * ops.cast(x["penalized"], "float32")
        returns = ops.stop_gradient(rewards - (policy - anchor))
        baseline = (ops.sum(returns) - returns) / (count - 1)
        forward = -ops.mean(best)
        backward = -ops.mean(policy * (returns - baseline))
        return (1.0 - JEFFREYS_BETA) * forward + JEFFREYS_BETA * backward

    def log_probs(self, logits, rows):
        """`log π(y|x)` of the completions, `(rows,)`."""
        log_probs = ops.log_softmax(logits[:, :-1], axis=-1)
        chosen = ops.take_along_axis(log_probs, rows[:, 1:, None], axis=-1)
        return ops.sum(chosen[:, self.prompt_length - 1 :, 0], axis=-1)


def logits_of(model, rows):
    hidden = model.backbone(
        {"token_ids": rows, "padding_mask": ops.ones_like(rows)}
    )
    return model.backbone.token_embedding(hidden, reverse=True)
