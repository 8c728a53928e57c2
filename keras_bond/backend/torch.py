"""PyTorch: every stage runs eagerly, the rollout without a graph."""

import torch


def decode_loop(body, finished, start, stop, state, check_every=16):
    """Runs `state = body(index, state)` until `stop` or `finished(state)`.

    Asking whether all rows have ended waits for the device, so it is asked
    only once in `check_every` tokens.
    """
    for index in range(int(start), stop):
        state = body(index, state)
        if index % check_every == 0 and bool(finished(state)):
            break
    return state


def compile_forward(function, variables, static_argnums=()):
    """Wraps a function of tensors so that it builds no graph."""
    del variables, static_argnums
    return torch.no_grad()(function)


class StagedTrainer:
    """Runs a step as rollout, rewards and learning.

    Between the stages the step is ordinary Python: a reward may do what it
    likes, its exceptions surface as themselves, and the weights are untouched
    when one does.
    """

    def train_step(self, data):
        with torch.no_grad():
            batch = self.targets(self._collect(data, training=True))
            before = self.watched_weights()
        super().train_step((batch,))
        with torch.no_grad():
            return self.after_update(batch, before)

    def test_step(self, data):
        batch = self.targets(self._collect(data, training=False))
        return super().test_step((batch,))

    def _collect(self, data, training):
        rollout = self.rollout(data[0], training)
        return self.score(data[0], rollout, training)
