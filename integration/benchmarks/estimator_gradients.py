"""Bias and variance of every estimator, in every scene and split."""

import jax.numpy as jnp
import numpy as np
from estimator_choices import make
from estimator_choices import offered
from estimator_moments import make_sampler
from estimator_moments import measure
from estimator_world import BINARY
from estimator_world import PLACES
from estimator_world import Scene
from estimator_world import ascent
from estimator_world import best_of_n_law
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
    chosen = offered(split)

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
        "n": estimator.choice.best_of_n,
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
    estimator = make(
        "forward",
        "control_variate",
        (1, SCALE_SAMPLES),
        forward="control_variate",
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
        policy = best_of_n_law(base.anchor, base.rewards, n)
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
