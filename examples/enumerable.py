"""A world so small that every completion of a language model can be listed.

A real Gemma 3 with a vocabulary of a few tokens answers one-token prompts with
at most a few tokens. Its distribution, its Best-of-N and the divergences
between them are then finite sums, and what training reaches is measured without
sampling.

    world = World(vocabulary_size=6, max_completion_length=3, num_prompts=4)
    policy = make_policy(world, seed=0)
    start, rewards = log_probs(world, policy), make_rewards(world, seed=0)
    target = best_of_n_distribution(np.exp(start), rewards, n=4)

The formulas are those of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622) in
NumPy and float64, on purpose without `keras_bond.formulas`: an oracle for it.
Arrays over completions are `(prompts, completions)`.
"""

import dataclasses
import itertools

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_bond

STOP = 1


@dataclasses.dataclass(frozen=True)
class World:
    """Prompts of two tokens, and completions of a few.

    A prompt is the stop token, which marks the beginning too (positions are
    relative: without a mark "2" and "2 2" look the same to the network), and
    one token of its own. A completion ends at its stop token or at the limit.
    Padded with stop tokens, its ids are the digits of a number of its own.

    Attributes:
        vocabulary_size: int. Denoted V. Tokens, the stop token among them.
        max_completion_length: int. Denoted L. Tokens, stop token included.
        num_prompts: int, at most `vocabulary_size - 2`.
    """

    vocabulary_size: int = 6
    max_completion_length: int = 3
    num_prompts: int = 4

    @property
    def lengths(self):
        """The arguments of a trainer that this world settles, as a dict."""
        return {
            "max_prompt_length": 2,
            "max_completion_length": self.max_completion_length,
            "stop_token_ids": (STOP,),
        }

    def prompts(self, copies):
        """Every prompt `copies` times, as `fit` wants them."""
        return {"token_ids": self.prompt_ids().tolist() * copies}

    def prompt_ids(self):
        """Lists all prompts, int32 `(prompts, 2)`."""
        own = np.arange(2, 2 + self.num_prompts, dtype="int32")
        return np.stack([np.full_like(own, STOP), own], axis=1)

    def completions(self):
        """Lists all completions.

        Returns:
            `(ids, mask)`, int32 and bool arrays `(completions,
            max_completion_length)`; the mask is True up to the stop token.
        """
        tokens = range(self.vocabulary_size)
        ids = itertools.product(tokens, repeat=self.max_completion_length)
        ids = np.array(list(ids), "int32")
        stops = ids == STOP
        ended = np.cumsum(stops, axis=1) > stops
        listed = np.all(stops | ~ended, axis=1)
        return ids[listed], ~ended[listed]

    def rows(self):
        """Lists all prompts with all completions, in one row each.

        Returns:
            `(token_ids, padding_mask)`, int32 and bool arrays
            `(prompts, completions, 2 + L)`.
        """
        ids, mask = self.completions()
        sizes = self.num_prompts, len(ids)

        def join(prompts, completions):
            prompts = np.repeat(prompts[:, None], sizes[1], axis=1)
            completions = np.repeat(completions[None], sizes[0], axis=0)
            return np.concatenate([prompts, completions], axis=-1)

        prompts = self.prompt_ids()
        return join(prompts, ids), join(prompts >= 0, mask)

    def numbers(self, token_ids, padding_mask):
        """The number whose digits, in base V, are the ids of a row.

        Args:
            token_ids: int tensor `(..., 2 + L)`.
            padding_mask: bool tensor of the same shape.

        Returns:
            int32 tensor `(...)`, below `V ** (1 + L)`.
        """
        digits = ops.where(padding_mask, token_ids, STOP)[..., 1:]
        exponents = np.arange(self.max_completion_length, -1, -1)
        values = ops.convert_to_tensor(self.vocabulary_size**exponents, "int32")
        return ops.sum(ops.cast(digits, "int32") * values, axis=-1)


def make_policy(world, seed, scale=0.6, num_layers=2, hidden_dim=32):
    """Builds a Gemma 3 whose next-token distributions are far from uniform.

    Args:
        world: a `World`.
        seed: int. Seed of the weights, which are the same on all backends.
        scale: float. How far from uniform. Defaults to 0.6.
        num_layers: int. Defaults to 2.
        hidden_dim: int. Defaults to 32.

    Returns:
        a `keras_hub.models.Gemma3CausalLM` without a tokenizer.
    """
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=world.vocabulary_size,
        image_size=None,
        vision_encoder=None,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        intermediate_dim=2 * hidden_dim,
        num_query_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window_size=8,
    )
    policy = keras_hub.models.Gemma3CausalLM(
        backbone=backbone, preprocessor=None
    )
    set_weights(policy, seed, scale)
    return policy


def set_weights(policy, seed, scale=0.6):
    """Gives the policy of `make_policy` the weights of another seed."""
    generator = np.random.default_rng(seed)
    for variable in policy.variables:
        noise = generator.normal(size=variable.shape) * 0.1
        if "embedding" in variable.path:
            noise = noise * scale
        variable.assign(noise.astype("float32"))


def make_rewards(world, seed, levels=None):
    """Draws a reward for every completion, independent standard normal.

    Args:
        world: a `World`.
        seed: int.
        levels: int for that many values only, 0 to `levels - 1`, equally
            frequent; `None` for no ties. Defaults to `None`.

    Returns:
        float array `(prompts, completions)`.
    """
    shape = world.num_prompts, len(world.completions()[0])
    rewards = np.random.default_rng((seed, 1)).normal(size=shape)
    if levels is None:
        return rewards
    ranks = rewards.argsort(axis=1).argsort(axis=1)
    return (ranks * levels // shape[1]).astype("float64")


class Table(keras.Layer):
    """Numbers looked up by prompt and completion: a reward, or quantiles.

    Args:
        world: a `World`.
        values: float array `(prompts, completions, ...)`.

    Call arguments:
        inputs: dict of `token_ids` int32 and `padding_mask` bool, both
            `(rows, 2 + L)`.

    Returns of a call:
        float32 tensor `(rows, ...)`.
    """

    def __init__(self, world, values):
        super().__init__(trainable=False)
        self.world = world
        self._row_numbers = ops.convert_to_numpy(world.numbers(*world.rows()))
        size = world.vocabulary_size ** (1 + world.max_completion_length)
        self.table = self.add_weight(
            name="table", shape=(size, *values.shape[2:]), initializer="zeros"
        )
        self.built = True
        self.fill(values)

    def fill(self, values):
        """Writes other values, of the same shape, into the table."""
        table = np.zeros(self.table.shape, "float32")
        table[self._row_numbers] = values
        self.table.assign(table)

    def call(self, inputs):
        numbers = self.world.numbers(
            inputs["token_ids"], inputs["padding_mask"]
        )
        return ops.take(self.table, numbers, axis=0)


def log_probs(world, policy):
    """`log π(y|x)` of every completion, exact, by one parallel pass.

    Under `with bond.using("anchor")` it is that of the anchor.

    Args:
        world: a `World`.
        policy: a `keras_hub.models.CausalLM`.

    Returns:
        float64 array `(prompts, completions)`, in nats.
    """
    return _as_probs(world, _log_probs(policy, *_every_row(world)))


def log_probs_reader(world, policy):
    """Compiles `log_probs` of the policy, for reading it again and again.

    Returns:
        function without arguments that returns what `log_probs` does.
    """
    forward = keras_bond.backend.compile_forward(
        lambda *rows: _log_probs(policy, *rows), policy.variables
    )
    return lambda: _as_probs(world, forward(*_every_row(world)))


def _log_probs(policy, *rows):
    return keras_bond.rollouts.completion_log_probs(
        policy, *rows, temperature=1.0
    )


def _every_row(world):
    token_ids, mask = (a.reshape(-1, a.shape[-1]) for a in world.rows())
    lengths = np.full(len(token_ids), 2, "int32")
    arrays = token_ids[:, :2], lengths, token_ids[:, 2:], mask[:, 2:]
    return [ops.convert_to_tensor(array) for array in arrays]


def _as_probs(world, tensor):
    array = ops.convert_to_numpy(tensor).astype("float64")
    return array.reshape(world.num_prompts, -1)


def quantiles(probs, rewards):
    """`p_le(y) = P[r(y') <= r(y)]` and `p_lt(y)`, with `<` (eq. 2).

    Args:
        probs: float array `(prompts, completions)`, `π_ref(y)`.
        rewards: float array `(prompts, completions)`.

    Returns:
        `(p_le, p_lt)`, float arrays `(prompts, completions)`.
    """
    own, others = rewards[:, :, None], rewards[:, None, :]
    p_le = np.sum(probs[:, None, :] * (others <= own), axis=-1)
    p_lt = np.sum(probs[:, None, :] * (others < own), axis=-1)
    return p_le, p_lt


def quantile_logits(probs, rewards):
    """Logits of `p_le` and `p_lt`, what `estimator=` wants in a `Table`.

    Returns:
        float array `(prompts, completions, 2)`, clipped to about ±30.
    """
    p = np.stack(quantiles(probs, rewards), axis=-1)
    p = np.clip(p, 1e-13, 1 - 1e-13)
    return np.log(p) - np.log1p(-p)


def best_of_n_distribution(probs, rewards, n):
    """`π_BoN(y)` of theorem 1, ties broken uniformly at random.

    `π_ref(y) Σ_{i=1..N} p_le^(N-i) p_lt^(i-1)`: the factors (A) and (B) of the
    theorem multiplied out, which needs no division. With ties it is
    `π_ref(y) (p_le^N - p_lt^N) / (p_le - p_lt)`, the same sum.

    Args:
        probs: float array `(prompts, completions)`, `π_ref(y)`.
        rewards: float array `(prompts, completions)`.
        n: int, at least 1. Denoted N in the paper.

    Returns:
        float array `(prompts, completions)`; each row sums to 1.
    """
    p_le, p_lt = quantiles(probs, rewards)
    return probs * sum(
        p_le ** (n - i) * p_lt ** (i - 1) for i in range(1, n + 1)
    )


def kl(p, q):
    """`KL(p ‖ q)` in nats, a mean over prompts. Both sum to 1 in each row."""
    ratio = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))
    return float(np.sum(p * ratio, axis=1).mean())


def total_variation(p, q):
    """`½ Σ |p - q|`, a mean over prompts."""
    return float(0.5 * np.abs(p - q).sum(axis=1).mean())


def measure(probs, start, rewards, n):
    """What one wants to know of a policy, exactly; all are means over prompts.

    Args:
        probs: float array `(prompts, completions)`, of the policy.
        start: float array `(prompts, completions)`, of the initial policy.
        rewards: float array `(prompts, completions)`.
        n: int. The N of the Best-of-N of the initial policy to compare with.

    Returns:
        dict of float: `reward`, expected; `log_quantile`, `E[log p_le]` with
        the quantiles of the initial policy; `win_rate` against one sample of
        it, ties one half; `kl_start`, `KL(π ‖ π_ref)`, `forward_kl`,
        `KL(π_BoN ‖ π)`, `backward_kl`, `KL(π ‖ π_BoN)`, in nats;
        `total_variation` to π_BoN.
    """
    p_le, p_lt = quantiles(start, rewards)
    target = best_of_n_distribution(start, rewards, n)

    def expected(values):
        return float(np.sum(probs * values, axis=1).mean())

    return {
        "reward": expected(rewards),
        "log_quantile": expected(np.log(np.maximum(p_le, 1e-300))),
        "win_rate": expected((p_le + p_lt) / 2),
        "kl_start": kl(probs, start),
        "forward_kl": kl(target, probs),
        "backward_kl": kl(probs, target),
        "total_variation": total_variation(probs, target),
    }
