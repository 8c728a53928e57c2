"""How fast the effective N grows, and what KL it costs: a study of settings.

    python integration/benchmarks/pace.py
        [--task facts|problems|restaurants|real] [--settings NAME ...]
        [--seeds 0] [--weights 1] [--backend jax] [--output FOLDER]
        [--preset FOLDER] [--data FOLDER] [--report]

Trains the policy of a task (`pace_tasks.py`) with each of the settings
(`pace_settings.py`) by the product's own `fit` and measures it with fresh
samples for held-out prompts. What counts is the KL to the initial policy over
that of Best-of-N at the same win rate, called waste, and how many sequences and
CPU seconds the policy has cost. `--weights 1 1.5` also measures the policy with
its weights extrapolated by 1.5. A row for each is added to results.csv;
`--report` only writes the table.
"""

import argparse
import csv
import math
import pathlib
import time

import pace_tasks
from pace_settings import BY_TASK
from reports import markdown
from reports import progress

OUTPUT = pace_tasks.restaurants.RUNS / "pace"
RESULTS = "results.csv"
WARM_UP = 10
FIELDS = (
    "task",
    "setting",
    "seed",
    "sequences",
    "cpu_seconds",
    "reward",
    "reward_error",
    "win_rate",
    "win_rate_error",
    "kl",
    "kl_error",
    "waste",
    "effective_n",
)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=BY_TASK, default="facts")
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0])
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    add = parser.add_argument
    add("--preset", type=pathlib.Path, help="of a policy with its own --output")
    add("--data", help="folder that holds e2e/, for the restaurants")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.preset and arguments.task == "real":
        parser.error("`--preset` is for the other tasks: real has SmolLM2")
    known = BY_TASK[arguments.task]
    for name in arguments.settings or ():
        if name not in known:
            choices = "; ".join(known)
            parser.error(f"`--settings` are {choices}. Received: {name}")
    for weight in arguments.weights:
        if not 0.0 <= weight <= 4.0:
            parser.error(f"`--weights` are from 0 to 4. Received: {weight:g}")
    results = arguments.output / RESULTS
    if arguments.report and not results.exists():
        parser.error(
            "`--report` shows the runs of an earlier study: name its folder as "
            f"`--output`. Received: no file {results}"
        )
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / RESULTS
    if not arguments.report:
        pace_tasks.demo.set_backend(arguments.backend)
        study(arguments, path)
    table = report(path)
    print(table)
    (arguments.output / "table.md").write_text(table)


def study(arguments, path):
    """Runs the settings for each seed and adds a row of results for each."""
    task = pace_tasks.load_task(
        arguments.task,
        arguments.preset and arguments.preset.resolve(),
        arguments.data,
    )
    settings = BY_TASK[arguments.task]
    for seed in arguments.seeds:
        for name in arguments.settings or settings:
            progress(f"{name}, seed {seed}")
            policy = task.load_policy(seed)
            cost, bond = train(policy, task, settings[name], seed)
            pool = load_pool(
                bond, task, path.with_name(f"{arguments.task}.npy")
            )
            for weight in arguments.weights:
                bond.interpolate(weight)
                extrapolated = f"{name}, weights x {weight:g}"
                row = {
                    "task": arguments.task,
                    "setting": name if weight == 1 else extrapolated,
                    "seed": seed,
                    **cost,
                    **measure(bond, task, pool),
                }
                add_row(path, row)
                progress("  ".join(f"{k} {row[k]:.4g}" for k in FIELDS[3:]))


def train(policy, task, stages, seed):
    """Trains in stages; the anchor of each begins as the initial policy.

    Returns:
        dict with what it cost, and the trainer of the last stage.
    """
    import keras_bond

    def weights():
        return [variable.numpy() for variable in policy.trainable_variables]

    def set_weights(values):
        for variable, value in zip(policy.trainable_variables, values):
            variable.assign(value)

    initial = weights()
    started = time.process_time()
    for i, stage in enumerate(stages):
        trained = weights()
        set_weights(initial)
        bond = task.make_bond(
            policy,
            seed + 1000 * i,
            num_policy_samples=stage.samples[0],
            num_anchor_samples=stage.samples[1],
            **stage.options,
            **({"updates": stage.updates} if stage.updates > 1 else {}),
        )
        set_weights(trained)
        bond.compile(make_optimizer(stage))
        rule = getattr(keras_bond.callbacks, stage.rule)
        bond.fit(
            task.prompts(stage.steps * stage.batch_size, seed + 1000 * i),
            batch_size=stage.batch_size,
            verbose=0,
            callbacks=[rule(*stage.rule_arguments)],
        )
    cost = {
        "sequences": sum(stage.total for stage in stages),
        "cpu_seconds": time.process_time() - started,
    }
    return cost, bond


def make_optimizer(stage):
    import keras

    steps = stage.steps * stage.updates
    warmup = min(WARM_UP, max(1, steps // 10))
    schedule = keras.optimizers.schedules.CosineDecay(
        stage.learning_rate / warmup,
        decay_steps=steps - warmup,
        alpha=stage.last,
        warmup_target=stage.learning_rate,
        warmup_steps=warmup,
    )
    return getattr(keras.optimizers, stage.optimizer)(schedule)


def load_pool(bond, task, path):
    """Rewards of the initial policy, which are drawn once and kept."""
    import numpy as np

    if not path.exists():
        np.save(path, draw(bond, task, seed=0, weights="reference")[0])
    return np.load(path)


def draw(bond, task, seed, weights="policy", at_once=4):
    """Rewards and exact KLs per token of fresh samples.

    Returns:
        two arrays `(prompts, samples)`; the KLs are those to the initial
        policy, summed over each completion.
    """
    import numpy as np

    rewards, kls = [], []
    for i in range(0, len(task.held_out), at_once):
        samples, scores = bond.draw_scored(
            task.held_out[i : i + at_once],
            task.samples,
            batch_size=at_once,
            weights=weights,
            seed=1000 * seed + i,
        )
        rewards.append(scores)
        if weights == "policy":
            kls.append(bond.kls_of(samples).reshape(scores.shape))
    return np.concatenate(rewards), np.concatenate(kls) if kls else None


def measure(bond, task, pool):
    """Reward, win rate, KL, waste and effective N of the trained policy.

    The errors are those of the draws, for these prompts.
    """
    import numpy as np

    from keras_bond.evaluation import best_of_n_frontier
    from keras_bond.evaluation import comparison
    from keras_bond.evaluation import effective_n

    rewards, kls = draw(bond, task, seed=1)
    beaten, tied = comparison.count_beaten(rewards, pool)
    wins = (beaten + 0.5 * tied) / pool.shape[1]
    best = best_of_n_frontier(pool, list(range(1, min(33, pool.shape[1]))))
    # Near N = 1 the win rate grows as the root of the KL.
    least = np.interp(
        wins.mean(),
        [row["win_rate"] for row in best],
        [math.sqrt(max(0.0, row["kl"])) for row in best],
    )
    return {
        "reward": rewards.mean(),
        "reward_error": error(rewards),
        "win_rate": wins.mean(),
        "win_rate_error": error(wins),
        "kl": kls.mean(),
        "kl_error": error(kls),
        "waste": kls.mean() / least**2,
        "effective_n": effective_n(rewards, pool).value,
    }


def error(values):
    """Standard error of the mean of samples, given the prompts."""
    return math.sqrt(values.var(axis=1, ddof=1).mean() / values.size)


def add_row(path, row):
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def report(path):
    """The table of all results: means over the seeds and their spread."""
    import numpy as np

    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    groups = {}
    for row in rows:
        groups.setdefault((row["task"], row["setting"]), []).append(row)

    def cell(runs, name, digits=3):
        values = np.array([float(run[name]) for run in runs])
        text = f"{values.mean():.{digits}f}"
        if len(values) == 1:
            return text
        spread = values.std(ddof=1) / len(values) ** 0.5
        return f"{text} ± {spread:.{digits}f}"

    columns = ["task", "setting", "seeds", "sequences", "CPU s"]
    columns += ["reward", "win rate", "KL", "waste", "effective N"]
    return markdown(
        columns,
        [
            [
                *key,
                str(len(runs)),
                runs[0]["sequences"],
                cell(runs, "cpu_seconds", 0),
                cell(runs, "reward"),
                cell(runs, "win_rate"),
                cell(runs, "kl"),
                cell(runs, "waste", 2),
                cell(runs, "effective_n", 2),
            ]
            for key, runs in groups.items()
        ],
    )


if __name__ == "__main__":
    main()
