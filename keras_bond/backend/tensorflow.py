"""TensorFlow: every stage is one `tf.function`, XLA-compiled by default."""

import tensorflow as tf
from keras import ops


def decode_loop(body, finished, start, stop, state):
    """Runs `state = body(index, state)` until `stop` or `finished(state)`."""

    def goes_on(index, state):
        return ops.logical_and(index < stop, ops.logical_not(finished(state)))

    def advance(index, state):
        return index + 1, body(index, state)

    return ops.while_loop(goes_on, advance, (start, state))[1]


def compile_forward(function, variables, static_argnums=()):
    """Compiles a function of tensors that reads `variables`, updates none.

    Arguments numbered in `static_argnums` are hashable Python values, which
    `tf.function` traces by value anyway.
    """
    del variables, static_argnums
    return tf.function(function, jit_compile=True, autograph=False)


class StagedTrainer:
    """Runs a step as rollout, rewards and learning, each compiled by itself.

    Between the compiled stages the step is ordinary Python: a reward may do
    what it likes, its exceptions surface as themselves, and the weights are
    untouched when one does.
    """

    def train_step(self, data):
        batch = self._collect(data, training=True)
        return self._stage("learn", self._learn)(batch)

    def test_step(self, data):
        batch = self._collect(data, training=False)
        return self._stage("judge", self._judge)(batch)

    def _collect(self, data, training):
        stage = self._stage(
            f"rollout {training}",
            lambda inputs: self.rollout(inputs, training),
        )
        return self.score(data[0], stage(data[0]), training)

    def _stage(self, name, function):
        if name not in self._stages:
            if not self._compiles_stages:
                self._stages[name] = function
            else:
                self._stages[name] = tf.function(
                    function,
                    jit_compile=self._jit_compiles_stages,
                    autograph=False,
                )
        return self._stages[name]

    def _learn(self, batch):
        batch = self.targets(batch)
        before = self.watched_weights()
        super().train_step((batch,))
        return self.after_update(batch, before)

    def _judge(self, batch):
        return super().test_step((self.targets(batch),))
