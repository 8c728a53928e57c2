"""Bias and variance of every estimator, in every scene and split.

The moments are those of gradients over many simulated draws.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from estimator_choices import Estimator
from estimator_choices import compared
from estimator_world import BINARY
from estimator_world import PLACES
from estimator_world import Scene
from estimator_world import ascent
from estimator_world import best_of_n_distribution
from estimator_world import draw
from estimator_world import forward_gradient
from estimator_world import make_scenes

from keras_bond import formulas

SPLITS = ((1, 2), (1, 4), (1, 8), (4, 2), (4, 4), (4, 8))
PAPER_SPLIT = (1, 2)
CHUNK = 250
# Best-of-n of the anchor, where the scale of the control variate is tried.
SCALE_PLACES = (1, 2, 3, 4, 8)
SCALE_SAMPLES = 4
# Fixed directions of random signs in which the mean is tested, beside its own.
DIRECTIONS = 7
# Of float32, as a share of the gradient at the start: an estimator without
# noise must not be tested by its last digits.
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Moments:
    """What was measured of one estimator.

    Attributes:
        variance: float. Trace of the covariance of the gradient of a prompt,
            a mean over prompts.
        variance_error: float. Its standard error.
        signal: float. The mean gradient along the exact one, 1 if unbiased.
            Where the exact one is zero, along that of the initial policy: 0 if
            unbiased.
        signal_error: float. Its standard error.
        bias: float. Norm of the bias as a share of the exact gradient at the
            start, less what noise adds.
        z_scores: array `(1 + DIRECTIONS,)` of the mean against what is
            expected, NaN where that is not known.
    """

    variance: float
    variance_error: float
    signal: float
    signal_error: float
    bias: float
    z_scores: np.ndarray


def make_sampler(gradients, chunk):
    """Compiles sums over `chunk` draws.

    Args:
        gradients: function of a random key and arguments that returns
            gradients `(estimators, prompts, parameters)` of one draw.
        chunk: int. Draws at once.

    Returns:
        function of a key, the directions `along` `(estimators, prompts,
        parameters)` and `signs` `(DIRECTIONS, prompts, parameters)`, and
        gradients' arguments, to a dict of sums.
    """

    @jax.jit
    def run(key, along, signs, *arguments):
        keys = jax.random.split(key, chunk)
        drawn = jax.vmap(lambda key: gradients(key, *arguments))(keys)
        own = jnp.einsum("cebd,ebd->ce", drawn, along)
        others = jnp.einsum("cebd,jbd->cej", drawn, signs)
        projected = jnp.concatenate([own[:, :, None], others], axis=-1)
        return {
            "sum": drawn.sum(axis=0),
            "squares": (drawn**2).sum(axis=(0, 2, 3)),
            "projected": projected.sum(axis=0),
            "projected_squares": (projected**2).sum(axis=0),
        }

    run.chunk = chunk
    return run


def measure(sampler, arguments, exact, start, expected, draws, seed):
    """Moments of every estimator of a sampler.

    Args:
        sampler: see `make_sampler`.
        arguments: tuple of arrays for it.
        exact, start, expected: float arrays `(estimators, prompts,
            parameters)`: the gradients of the divergence here and at the
            start, and what is to be expected.
        draws: int. Rounded up to whole chunks, of which at least two.
        seed: int.

    Returns:
        list of `Moments`.
    """
    norms = np.sqrt((exact**2).sum(axis=(1, 2)))
    start_norms = np.sqrt((start**2).sum(axis=(1, 2)))
    vanishes = norms < 1e-6 * start_norms
    along = np.where(vanishes[:, None, None], start, exact)
    along = along / (along**2).sum(axis=(1, 2), keepdims=True)
    signs = np.random.default_rng(seed).choice(
        [-1.0, 1.0], (DIRECTIONS, *exact.shape[1:])
    )
    directions = along.astype("float32"), signs.astype("float32")
    count = max(2, -(-draws // sampler.chunk))
    keys = jax.random.split(jax.random.key(seed), count)
    sums = [
        {
            name: np.asarray(value, "float64")
            for name, value in sampler(key, *directions, *arguments).items()
        }
        for key in keys
    ]
    draws = count * sampler.chunk
    mean, projected, squares = (
        sum(s[name] for s in sums) / draws
        for name in ("sum", "projected", "projected_squares")
    )
    errors = np.sqrt((squares - projected**2) / draws)
    targets = np.concatenate(
        [
            np.einsum("ebd,ebd->e", expected, along)[:, None],
            np.einsum("ebd,jbd->ej", expected, signs),
        ],
        axis=1,
    )
    scale = np.tile(start_norms[:, None], (1, 1 + DIRECTIONS))
    scale[:, 0] = 1.0
    z_scores = (projected - targets) / np.hypot(errors, ROUNDING * scale)
    prompts = exact.shape[1]
    variances = np.array([s["squares"] / sampler.chunk for s in sums])
    variances = (variances - (mean**2).sum(axis=(1, 2))) / prompts
    variance = variances.mean(axis=0) * draws / (draws - 1)
    noise = variance * prompts / draws
    bias = ((mean - exact) ** 2).sum(axis=(1, 2)) - noise
    return [
        Moments(
            variance=float(variance[e]),
            variance_error=float(variances[:, e].std(ddof=1) / np.sqrt(count)),
            signal=float(projected[e, 0]),
            signal_error=float(errors[e, 0]),
            bias=float(np.sqrt(max(bias[e], 0.0)) / start_norms[e]),
            z_scores=z_scores[e],
        )
        for e in range(len(exact))
    ]


def measure_split(split, scenes, draws, seed):
    """Measures every estimator that goes with P + k samples.

    Args:
        split: pair of int, P and k.
        scenes: dict from name to `Scene`.
        draws: int. Simulated draws of the whole batch of prompts.
        seed: int.

    Yields:
        dict for each scene and estimator: what it is, its `Moments`, and the
        exact `designed_signal` and `designed_bias` where they are known.
    """
    chosen = compared(split)

    def gradients(key, scene):
        batch = draw(key, scene, *split)
        coefficients = jnp.stack([e.coefficients(batch) for e in chosen])
        return ascent(coefficients, batch["outcomes"], scene.policy)

    sampler = make_sampler(gradients, min(CHUNK, draws))
    for place, (name, scene) in enumerate(scenes.items()):
        start = Scene(scene.anchor, scene.anchor, scene.rewards)
        exact, first, expected = (
            np.stack(gradients)
            for gradients in (
                [e.exact(scene) for e in chosen],
                [e.exact(start) for e in chosen],
                [e.expected(scene) for e in chosen],
            )
        )
        moments = measure(
            sampler,
            (in_float32(scene),),
            exact,
            first,
            expected,
            draws,
            seed + 1000 * place,
        )
        for e, estimator in enumerate(chosen):
            yield {
                "scene": name,
                **describe(estimator),
                **designed(exact[e], first[e], expected[e]),
                **vars(moments[e]),
            }


def in_float32(scene):
    return Scene(*(np.asarray(x, "float32") for x in scene))


def describe(estimator):
    return {
        "part": estimator.part,
        "n": estimator.best_of_n,
        "name": estimator.name,
        "p": estimator.split[0],
        "k": estimator.split[1],
    }


def designed(exact, start, expected):
    """Exact signal and bias of the expectation, see `Moments`."""
    first = np.linalg.norm(start)
    vanishes = np.linalg.norm(exact) < 1e-6 * first
    along = start if vanishes else exact
    return {
        "designed_signal": float((expected * along).sum() / (along**2).sum()),
        "designed_bias": float(np.linalg.norm(expected - exact) / first),
    }


def measure_all(draws, splits=SPLITS, seed=0):
    """Records of all splits; ratios need the paper's split among them."""
    scenes = make_scenes()
    for split in splits:
        yield from measure_split(split, scenes, draws, seed + 10 * split[1])


def add_ratios(records):
    """Adds the variance ratios to the paper's estimator.

    Each part of Best-of-n is compared with the paper's for the same n, from 1
    policy sample and as many anchor samples as n needs. `ratio_prompts` is at
    equal prompts, `ratio_sequences` at an equal number of generated sequences,
    all P + k of them.
    """
    names = {
        "forward": "best_sample",
        "backward": "pairs, random, batch",
        "whole": "paper",
    }
    papers = {
        (r["scene"], r["part"], r["n"]): r
        for r in records
        if r["name"] == names[r["part"]]
        and (r["p"], r["k"]) == (1, max(2, r["n"]))
    }
    for record in records:
        paper = papers.get((record["scene"], record["part"], record["n"]))
        if paper is None or record["variance"] < 1e-9:
            continue
        ratio = paper["variance"] / record["variance"]
        sequences = (paper["p"] + paper["k"]) / (record["p"] + record["k"])
        record["ratio_prompts"] = ratio
        record["ratio_sequences"] = ratio * sequences
        record["ratio_error"] = ratio * np.hypot(
            *(r["variance_error"] / r["variance"] for r in (paper, record))
        )


def measure_scale(draws, seed=0):
    """The scale of the control variate, at policies ever further away.

    A batch without valid other prompts falls back to scale 1.

    Yields:
        dict with `n`, the exact `kl` to the anchor, and the variances of
        `order_statistics`, of `scale_1`, and of the library's `auto`.
    """
    base = make_scenes()["anchor"]
    estimator = Estimator(
        "forward", "", 1, SCALE_SAMPLES, forward="control_variate"
    )

    def gradients(key, scene):
        batch = draw(key, scene, 1, SCALE_SAMPLES)
        anchors = batch["rewards"][:, 1:]
        weights = formulas.best_of_n_weights(anchors, 2)
        plain = jnp.pad(weights, [(0, 0), (1, 0)])
        alone = {**batch, "valid": jnp.zeros_like(batch["valid"])}
        coefficients = jnp.stack(
            [
                plain,
                estimator.coefficients(alone),
                estimator.coefficients(batch),
            ]
        )
        return ascent(coefficients, batch["outcomes"], scene.policy)

    sampler = make_sampler(gradients, min(CHUNK, draws))
    for n in SCALE_PLACES:
        policy = best_of_n_distribution(base.anchor, base.rewards, n)
        scene = base._replace(policy=policy)
        exact = np.stack([forward_gradient(scene, 2)] * 3)
        start = np.stack([forward_gradient(base, 2)] * 3)
        moments = measure(
            sampler, (in_float32(scene),), exact, start, exact, draws, seed + n
        )
        kl = (policy * np.log(policy / base.anchor)).sum(axis=1).mean()
        names = ("order_statistics", "scale_1", "auto")
        yield {
            "n": n,
            "kl": float(kl),
            **{name: m.variance for name, m in zip(names, moments)},
            "z_scores": np.stack([m.z_scores for m in moments]),
        }


def places_of(records, **wanted):
    """Records at the three places that match, in order, `None` if missing."""
    found = {
        r["scene"]: r
        for r in records
        if all(r[name] == value for name, value in wanted.items())
    }
    return [found.get(place) for place in PLACES]


def tie_records(records, k):
    """Backward records of the binary scene with 4 policy samples."""
    return {
        r["name"]: r
        for r in records
        if r["scene"] == BINARY
        and (r["part"], r["n"], r["p"], r["k"]) == ("backward", 2, 4, k)
    }
