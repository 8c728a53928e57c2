"""What the estimators' variance is worth: learning with as many sequences.

Tabular policies are trained with Adam on the Jeffreys divergence, with a fixed
anchor towards its Best-of-2, or with an anchor that follows as an exponential
moving average. Everything that is reported of a policy is exact.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from estimator_choices import RECIPES
from estimator_choices import Estimator
from estimator_world import Scene
from estimator_world import ascent
from estimator_world import best_of_n_distribution
from estimator_world import draw
from estimator_world import make_anchor
from estimator_world import quantiles
from estimator_world import softmax

from keras_bond import formulas
from keras_bond.evaluation import excess_kl

# Name of the recipe, P and k; the paper's first.
CONTESTANTS = (
    ("paper", (1, 2)),
    ("paper", (4, 4)),
    ("control_variate + pairs", (1, 2)),
    ("control_variate + harmonic, mixed", (1, 2)),
    ("control_variate + pairs, mixed", (4, 4)),
    ("pooled", (2, 2)),
    ("pooled", (4, 4)),
)
LEARNING_RATES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
UPDATE_RATE = 0.02
# Generated sequences a prompt, at which the distance is read.
BUDGETS = (600, 2400)
MOVING_BUDGET = 1200
WIN_RATES = (0.7, 0.8)
# The learning rate is chosen in some worlds and measured in others.
CHOOSING, JUDGING = 4, 8


def make_worlds(seeds):
    """Initial policies and rewards `(worlds, ...)`, one for each seed."""
    worlds = []
    for seed in seeds:
        logits, rewards = make_anchor(np.random.default_rng(1000 + seed))
        start = softmax(logits)
        p_le, p_lt = quantiles(start, rewards)
        midrank = (p_le + p_lt) / 2
        worlds.append(
            {
                "logits": logits,
                "rewards": rewards,
                "midrank": midrank,
                "target": best_of_n_distribution(start, rewards, 2),
            }
        )
    return {
        name: np.stack([w[name] for w in worlds]).astype("float32")
        for name in worlds[0]
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train(estimator, steps, update_rate, worlds, keys, learning_rates):
    """Trains one policy for each world and learning rate.

    Args:
        estimator: `Estimator` of the whole gradient.
        steps: int.
        update_rate: float. Of the anchor, 0 keeps it.
        worlds: see `make_worlds`.
        keys: random keys `(worlds,)`.
        learning_rates: float array `(rates,)`.

    Returns:
        dict of arrays `(rates, worlds, steps)`: `distance` (Jeffreys to
        Best-of-2 of the initial policy), `win_rate` and `kl` against the
        initial policy.
    """

    def run(learning_rate, world, key):
        start = jax.nn.softmax(world["logits"])

        def step(state, inputs):
            key, t = inputs
            policy, anchor = (
                jax.nn.softmax(state[name]) for name in ("logits", "anchor")
            )
            scene = Scene(policy, anchor, world["rewards"])
            batch = draw(key, scene, *estimator.split)
            gradient = -ascent(
                estimator.coefficients(batch), batch["outcomes"], policy
            )
            state = adam(state, gradient, t, learning_rate)
            moved = state["logits"] - state["anchor"]
            state["anchor"] = state["anchor"] + update_rate * moved
            return state, report(jax.nn.softmax(state["logits"]))

        def report(policy):
            distance = formulas.jeffreys_divergence(policy, world["target"])
            wins = jnp.sum(policy * world["midrank"], axis=1)
            return {
                "distance": jnp.mean(distance),
                "win_rate": jnp.mean(wins),
                "kl": jnp.mean(formulas.kl_divergence(policy, start)),
            }

        state = {
            "logits": world["logits"],
            "anchor": world["logits"],
            "mean": jnp.zeros_like(world["logits"]),
            "square": jnp.zeros_like(world["logits"]),
        }
        keys = jax.random.split(key, steps)
        times = jnp.arange(1, steps + 1, dtype="float32")
        return jax.lax.scan(step, state, (keys, times))[1]

    over_worlds = jax.vmap(run, in_axes=(None, 0, 0))
    return jax.vmap(over_worlds, in_axes=(0, None, None))(
        learning_rates, worlds, keys
    )


def adam(state, gradient, t, learning_rate, b1=0.9, b2=0.999):
    """One step of Adam (Kingma and Ba, 2015) on `state["logits"]`."""
    mean = b1 * state["mean"] + (1 - b1) * gradient
    square = b2 * state["square"] + (1 - b2) * gradient**2
    step = mean / (1 - b1**t) / (jnp.sqrt(square / (1 - b2**t)) + 1e-8)
    logits = state["logits"] - learning_rate * step
    return {**state, "logits": logits, "mean": mean, "square": square}


def at_win_rate(values, win_rates, level):
    """Values when a win rate is first reached, linear in between, or NaN.

    Args:
        values, win_rates: arrays `(..., steps)`.
        level: float.

    Returns:
        array `(...)`.
    """
    reached = win_rates >= level
    after = np.maximum(reached.argmax(axis=-1), 1)[..., None]

    def pair(array):
        return (
            np.take_along_axis(array, after - i, axis=-1)[..., 0]
            for i in (1, 0)
        )

    low, high = pair(win_rates)
    first, second = pair(values)
    share = np.clip((level - low) / np.maximum(high - low, 1e-9), 0, 1)
    crossed = first + share * (second - first)
    return np.where(reached.any(axis=-1), crossed, np.nan)


def compete(name, split, moving, budgets, seed=0):
    """One contestant: learning rates chosen, results and curves.

    Args:
        name: str, a key of `RECIPES`.
        split: pair of int, P and k.
        moving: bool. Whether the anchor follows.
        budgets: tuple of int. Sequences a prompt; with a moving anchor the
            last alone.
        seed: int.

    Returns:
        list of dict, one for each budget or win rate, with `values`
        and `sequences` taken `(JUDGING,)`, and `curve`, the chosen rate's
        `(JUDGING, steps)`; `target_win_rate` is that of Best-of-2.
    """
    estimator = Estimator("whole", name, *split, **RECIPES[name])
    worlds = make_worlds(range(seed, seed + CHOOSING + JUDGING))
    keys = jax.random.split(jax.random.key(seed), CHOOSING + JUDGING)
    steps = budgets[-1] // sum(split)
    curves = train(
        estimator,
        steps,
        UPDATE_RATE if moving else 0.0,
        worlds,
        keys,
        np.array(LEARNING_RATES, "float32"),
    )
    curves = {key: np.asarray(value) for key, value in curves.items()}
    curves["excess"] = excess_kl(curves["win_rate"], curves["kl"])
    results = []
    for level in WIN_RATES if moving else budgets:
        if moving:
            values = at_win_rate(curves["excess"], curves["win_rate"], level)
        else:
            values = curves["distance"][..., level // sum(split) - 1]
        chosen = choose(values[:, :CHOOSING])
        measured = {key: c[chosen, CHOOSING:] for key, c in curves.items()}
        taken = np.full(JUDGING, level)
        if moving:
            reached = measured["win_rate"] >= level
            taken = (reached.argmax(axis=-1) + 1) * sum(split)
        results.append(
            {
                "name": name,
                "p": split[0],
                "k": split[1],
                "anchor": "moving" if moving else "fixed",
                "level": level,
                "learning_rate": LEARNING_RATES[chosen],
                "values": values[chosen, CHOOSING:],
                "sequences": taken,
                "target_win_rate": target_win_rate(worlds),
                "curve": measured,
            }
        )
    return results


def target_win_rate(worlds):
    wins = (worlds["target"] * worlds["midrank"]).sum(axis=-1)
    return float(wins[CHOOSING:].mean())


def choose(values):
    """Index of the best learning rate; one that fails somewhere is out."""
    means = np.where(np.isfinite(values), values, np.inf).mean(axis=1)
    return int(np.argmin(means))
