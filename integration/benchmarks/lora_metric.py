"""How well a first step tells answers apart, in several metrics: LoRA, SmolLM2.

    python integration/benchmarks/lora_metric.py [--prompts 60] [--held-out 32]
        [--samples 16] [--output FOLDER]

A step along the gradient is short in the metric of the optimizer, and the KL
that it costs is long or short in another one, the Fisher information. The study
draws samples of the initial policy, computes the gradient of each one's
log-probability with respect to the second factors of the adapters (the others
have no gradient at the start), and takes the first step of BOND in several
metrics. Printed is the correlation of ranks and log-ratios for prompts that the
step has not seen: Best-of-N has 0.8, and KL / least KL is 1 / corr² (see
docs/estimators.md). JAX, 15 CPU minutes; the gradients are kept in FOLDER.
"""

import argparse
import pathlib
import time

import numpy as np
import pace_tasks
from reports import markdown
from reports import progress

OUTPUT = pace_tasks.restaurants.RUNS / "lora_metric"
AT_ONCE = 4
# Added to a Fisher matrix, as a share of its mean eigenvalue.
DAMPING = 0.1
# Of a normal distribution, within one standard error of the mean.
ONE_SIGMA = 0.683
# Of the Fisher matrix that grows: prompts and samples for each of them.
STEP = (3, 8)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "gradients.npz"
    pace_tasks.demo.set_backend("jax")
    if not path.exists():
        partial = path.with_name("partial.npz")
        np.savez(partial, **measure(arguments))
        partial.replace(path)
    with np.load(path) as file:
        table = compare(dict(file))
    print(table)
    (arguments.output / "table.md").write_text(table)


def measure(arguments):
    """Rewards and gradients of samples for seen and for held-out prompts.

    Returns:
        dict of arrays: `rewards` and `held_out_rewards` `(prompts, samples)`,
        `gradients` and `held_out_gradients` `(prompts, samples, size)`, and
        `shapes` of the second factors, one after the other in `size`.
    """
    task = pace_tasks.load_task("real")
    policy = task.load_policy(0)
    bond = task.make_bond(policy, 0)
    gradients = SecondFactors(policy)
    measured = {"shapes": np.array([v.shape for v in gradients.variables])}
    sets = {
        "": task.prompts(arguments.prompts, 0),
        "held_out_": task.held_out[: arguments.held_out],
    }
    for seed, (name, prompts) in enumerate(sets.items()):
        rewards, rows = [], []
        for i in range(0, len(prompts), AT_ONCE):
            progress(f"{name or 'seen_'}prompts: {i} of {len(prompts)}")
            samples, scores = bond.draw_scored(
                prompts[i : i + AT_ONCE],
                arguments.samples,
                batch_size=AT_ONCE,
                weights="reference",
                seed=1000 * seed + i,
            )
            rewards.append(scores)
            rows.append(gradients(samples).reshape(*scores.shape, -1))
        measured[f"{name}rewards"] = np.concatenate(rewards)
        measured[f"{name}gradients"] = np.concatenate(rows)
    return measured


class SecondFactors:
    """Gradients of each sample's log-probability, for LoRA's second factors."""

    def __init__(self, policy, rows_at_once=8):
        import jax

        self.backbone = policy.backbone
        self.variables = [
            v
            for v in self.backbone.trainable_variables
            if v.path.endswith("lora_kernel_b")
        ]
        self.rows_at_once = rows_at_once
        rows = jax.vmap(jax.grad(self._log_prob), (None, 0, 0, 0, 0))
        self._gradients = jax.jit(rows)

    def __call__(self, samples):
        """Gradients `(rows, size)` for a `keras_bond.rewards.Samples`."""
        mask = np.asarray(samples.padding_mask)
        ends = mask.sum(axis=1)
        starts = ends - [len(ids) for ids in samples.completion_ids]
        columns = (np.asarray(samples.token_ids), mask, starts, ends)
        values = [v.value for v in self.variables]
        flat = []
        for i in range(0, len(mask), self.rows_at_once):
            some = (column[i : i + self.rows_at_once] for column in columns)
            found = self._gradients(values, *some)
            flat.append(np.hstack([g.reshape(len(g), -1) for g in found]))
        return np.concatenate(flat)

    def _log_prob(self, values, token_ids, mask, start, end):
        import jax
        import keras

        mapping = list(zip(self.variables, values))
        with keras.StatelessScope(state_mapping=mapping):
            inputs = {"token_ids": token_ids[None], "padding_mask": mask[None]}
            hidden = self.backbone(inputs)
            logits = self.backbone.token_embedding(hidden, reverse=True)
        log_probs = jax.nn.log_softmax(logits[0, :-1])
        position = np.arange(1, len(token_ids))
        of_tokens = log_probs[position - 1, token_ids[1:]]
        is_drawn = (position >= start) & (position < end)
        return (of_tokens * is_drawn).sum()


def compare(measured):
    """The table of correlations, one row for each metric."""
    ranks, held_out_ranks = (
        centered_ranks(measured[f"{name}rewards"]) for name in ("", "held_out_")
    )
    seen, held_out = (
        centered(measured[f"{name}gradients"]) for name in ("", "held_out_")
    )
    sizes = np.prod(measured["shapes"], axis=1)
    blocks = list(zip(np.cumsum(sizes) - sizes, np.cumsum(sizes)))
    flat = seen.reshape(-1, seen.shape[-1])
    gradient = ranks.ravel() @ flat
    progress(f"cosine of two halves: {cosine_of_halves(seen, ranks):.2f}")
    square = (flat**2).mean(axis=0)
    steps = {
        "SGD": gradient,
        "Adam, step by step": adam(seen, ranks),
        "Fisher, its diagonal": gradient / (square + 1e-2 * square.mean()),
        "Fisher of each factor": solve(fishers(flat, blocks), blocks, gradient),
        "the same, step by step": online(seen, ranks, blocks),
        "the same, of the steps alone": online(seen, ranks, blocks, True),
    }
    rows = []
    for name, step in steps.items():
        mean, error = correlation(held_out @ step, held_out_ranks)
        price = (3**0.5 / 2 / mean) ** 2
        rows.append([name, f"{mean:.2f} ± {error:.2f}", f"{price:.1f}"])
        progress("  ".join(rows[-1]))
    return markdown(["metric", "correlation", "KL over Best-of-N's"], rows)


def cosine_of_halves(gradients, ranks):
    """Cosine of the gradients of every other prompt and of the rest."""
    a, b = (
        np.einsum("ps,psd->d", ranks[i::2], gradients[i::2]) for i in (0, 1)
    )
    return a @ b / np.sqrt((a @ a) * (b @ b))


def centered_ranks(rewards):
    """Share of the other samples that each one beats, minus a half."""
    from keras_bond.evaluation import comparison

    beaten, tied = comparison.count_beaten(rewards, rewards)
    # Each sample ties with itself.
    return (beaten + 0.5 * (tied - 1)) / (rewards.shape[1] - 1) - 0.5


def centered(values):
    """Values minus the mean over the samples of their prompt."""
    return values - values.mean(axis=1, keepdims=True)


def correlation(log_ratios, ranks):
    """Correlation within prompts, and its error by a bootstrap of prompts.

    Ranks among n samples multiply it by √(n/(n+1)), which is undone.
    """
    from keras_bond.evaluation.bootstrap import bootstrap

    log_ratios = centered(log_ratios)
    terms = [log_ratios * ranks, log_ratios**2, ranks**2]
    n = ranks.shape[1]

    def of_means(product, square, rank_square):
        scale = np.sqrt((n + 1) / n)
        return (scale * product / np.sqrt(square * rank_square),)

    sums = np.stack([term.sum(axis=1) for term in terms], axis=1)
    (found,) = bootstrap(of_means, sums, ONE_SIGMA, 1000, seed=0)
    return found.value, (found.high - found.low) / 2


def fishers(rows, blocks):
    """Sums of products of gradients, a matrix for each block."""
    return [rows[:, a:b].T @ rows[:, a:b] for a, b in blocks]


def solve(matrices, blocks, gradient):
    """The gradient times the inverse of each damped matrix."""
    step = np.empty_like(gradient)
    for matrix, (a, b) in zip(matrices, blocks):
        mean = np.trace(matrix) / len(matrix)
        damped = matrix + DAMPING * mean * np.eye(len(matrix))
        step[a:b] = np.linalg.solve(damped, gradient[a:b])
    return step


def batches(gradients, ranks, seed=0):
    """Each sample once, a few prompts and samples at a time."""
    prompts, samples = STEP
    rng = np.random.default_rng(seed)
    for j in range(0, ranks.shape[1] - samples + 1, samples):
        order = rng.permutation(len(ranks))
        for i in range(0, len(order) - prompts + 1, prompts):
            chosen = order[i : i + prompts], slice(j, j + samples)
            rows = centered(gradients[chosen])
            rows = rows.reshape(-1, rows.shape[-1])
            yield rows, ranks[chosen].ravel() @ rows


def adam(gradients, ranks, decays=(0.9, 0.999)):
    """The sum of Adam's steps at a constant rate."""
    total = np.zeros(gradients.shape[-1])
    first = second = 0.0
    for t, (_, gradient) in enumerate(batches(gradients, ranks), 1):
        first = decays[0] * first + (1 - decays[0]) * gradient
        second = decays[1] * second + (1 - decays[1]) * gradient**2
        mean, square = (
            moment / (1 - decay**t)
            for moment, decay in zip((first, second), decays)
        )
        total += mean / (np.sqrt(square) + 1e-7)
    return total


def online(gradients, ranks, blocks, of_steps=False):
    """The sum of steps in a Fisher metric of the samples drawn until then.

    With `of_steps` the metric knows the gradients of the steps alone, as an
    optimizer does.
    """
    total = np.zeros(gradients.shape[-1])
    mean = 0.0
    matrices = [np.zeros((b - a, b - a), "float32") for a, b in blocks]
    for t, (rows, gradient) in enumerate(batches(gradients, ranks), 1):
        mean = 0.9 * mean + 0.1 * gradient
        known = gradient[None] if of_steps else rows
        for matrix, more in zip(matrices, fishers(known, blocks)):
            matrix += more
        total += t * solve(matrices, blocks, mean / (1 - 0.9**t))
    return total


if __name__ == "__main__":
    start = time.process_time()
    main()
    progress(f"{(time.process_time() - start) / 60:.0f} CPU minutes")
