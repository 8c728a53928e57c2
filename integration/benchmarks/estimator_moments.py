"""Mean and variance of gradient estimates over many simulated draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# Fixed directions of random signs in which the mean is tested, beside its own.
DIRECTIONS = 7
# Of float32, as a share of the gradient at the start: an estimator without
# noise is not to be judged by its last digits.
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Moments:
    """What was measured of one estimator.

    Attributes:
        variance: float. Trace of the covariance of the gradient of a prompt,
            a mean over prompts.
        variance_error: float. Its standard error.
        signal: float. The mean gradient along the exact one, 1 if unbiased.
            Where the exact one is zero, along that of the start: 0 if unbiased.
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
