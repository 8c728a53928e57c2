"""Real data: a tiny Gemma 3 describes restaurants, taught by people.

    python integration/restaurants.py [--backend jax|tensorflow|torch]
        [--trainer jbond|bond] [--steps 150] [--data FOLDER]

The policy is taught with human texts once, which takes some minutes, and kept
in `integration/runs/`. Then it is measured on held-out lists of facts, trained
with a reward that reads the facts back, and measured on its way.

The E2E data are not part of this repository: KERAS_BOND_DATA or `--data` names
a folder that holds `e2e/`.
"""

import argparse
import csv
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import demo
import restaurant_world

RUNS = pathlib.Path(__file__).resolve().parent / "runs"
SFT_STEPS = 600
# Tokens of a prompt, and of a completion.
MAX_LENGTH = 48
KL_SAMPLES = 8
COLUMNS = {**demo.COLUMNS, "perfect": "everything right"}
PROGRESS = ("sequences", "reward", "win_rate", "kl", "perfect")


def parse_arguments(argv=None):
    """Reads the command line and sets the backend, before Keras is imported."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    backends = ("jax", "tensorflow", "torch")
    parser.add_argument("--backend", choices=backends, default="jax")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="folder that holds e2e/")
    parser.add_argument("--sft-steps", type=int, default=SFT_STEPS)
    parser.add_argument("--trainer", choices=demo.TRAINERS, default="jbond")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--sequences-per-step", type=int, default=144)
    parser.add_argument("--learning-rate", type=float, default=1.5e-4)
    parser.add_argument("--update-rate", type=float, default=0.02)
    parser.add_argument("--kl-weight", type=float, default=0.1)
    parser.add_argument("--measure-every", type=int, default=25, help="steps")
    parser.add_argument("--held-out", type=int, default=128, help="prompts")
    parser.add_argument("--pool", type=int, default=demo.POOL_SIZE)
    parser.add_argument("--samples", type=int, default=16, help="on the way")
    help = "for each prompt of the table"
    parser.add_argument(
        "--final-samples", type=int, default=demo.SAMPLES, help=help
    )
    parser.add_argument("--runs", type=pathlib.Path, default=RUNS)
    arguments = parser.parse_args(argv)
    demo.set_backend(arguments.backend)
    return arguments


def main(argv=None):
    """Teaches, measures, trains and measures; see the top of the file.

    Returns:
        list of dicts: Best-of-N of the initial policy for each N, and the
        policy after training.
    """
    arguments = parse_arguments(argv)
    world = load_world(arguments.data)
    own, shuffled = world.human_rewards()
    print(
        f"Reward of human texts: {own:.3f}; of texts about another restaurant: "
        f"{shuffled:.3f}"
    )
    preset = teach(world, arguments.sft_steps, arguments.runs)
    return run(make_task(world, preset, arguments), arguments)


def load_world(folder=None):
    """The restaurants; ends the program where there are no data."""
    try:
        folder = restaurant_world.find_data(folder)
    except FileNotFoundError as error:
        sys.exit(str(error))
    return restaurant_world.Restaurants(folder)


def teach(world, steps=SFT_STEPS, runs=RUNS):
    """Teaches a policy with the human texts, unless that was done before.

    Returns:
        path of the preset.
    """
    preset = runs / f"sft-{steps}"
    if preset.exists():
        print(f"The policy taught before: {preset}")
        return preset
    import train_presets

    recipe = train_presets.World(
        module=world,
        reward=world.slot_coverage,
        vocabulary_size=1024,
        hidden_dim=128,
        sequence_length=80,
        steps=steps,
    )
    train_presets.save(train_presets.make_policy(recipe, steps), preset)
    return preset


def make_task(world, preset, arguments):
    """Says what is learned and how: a `demo.Task` of epochs between measures.

    Steps that do not fill the last epoch are left out.
    """
    import keras_bond

    every = min(arguments.measure_every, arguments.steps)
    return demo.Task(
        world=world,
        reward=world.slot_coverage,
        preset=preset,
        max_prompt_length=MAX_LENGTH,
        max_completion_length=MAX_LENGTH,
        learning_rate=arguments.learning_rate,
        anchor=keras_bond.callbacks.AnchorEMA(arguments.update_rate),
        kl_weight=arguments.kl_weight,
        epochs=arguments.steps // every,
        steps_per_epoch=every,
        trainer=demo.TRAINERS[arguments.trainer],
        sequences_per_step=arguments.sequences_per_step,
    )


def run(task, arguments):
    """Measures the start, trains and measures; writes table, path, picture."""
    started = time.time()
    bond = demo.build(task, arguments.seed, task.epochs)
    prompts = task.world.held_out_prompts(arguments.held_out, seed=1)
    print(f"Best-of-N before: {arguments.pool} samples per prompt ...")
    pool = demo.sample(bond, task, prompts, arguments.pool)
    frontier = measure_start(pool)

    name = task.trainer.name
    print(f"{name}: {task.epochs} times {task.steps_per_epoch} steps ...")
    path = train(bond, task, prompts, pool, arguments)
    after = demo.measure(bond, prompts, arguments.final_samples)
    perfect = {"perfect": (after.rewards == 1.0).mean(axis=1)}
    row = demo.compare(after, pool) | demo.means_and_errors(perfect)

    rows = [*frontier, {**row, "sequences": path[-1]["sequences"]}]
    output = arguments.runs / f"{arguments.trainer}-seed{arguments.seed}"
    output.mkdir(parents=True, exist_ok=True)
    write(output, rows, path, name)
    demo.show_samples(prompts, pool, after)
    print(demo.format_table(rows, COLUMNS))
    print(f"Wrote {output} after {time.time() - started:.0f} s.")
    return rows


def measure_start(pool):
    """Best-of-N of the initial policy for each N of `demo.CURVE`."""
    rows = demo.best_of_n(pool.rewards)
    # The best of N is perfect where one of the N is.
    for row, perfect in zip(rows, demo.best_of_n(pool.rewards == 1.0)):
        row["perfect"] = perfect["reward"]
        row["perfect_error"] = perfect["reward_error"]
    return rows


def train(bond, task, prompts, pool, arguments):
    """Fits the policy and measures it before and after each epoch.

    Returns:
        list of dicts with the keys of `PROGRESS`.
    """
    import keras

    trainer, batch_size = task.trainer, task.batch_size
    path = []

    def measure(epoch, logs=None):
        steps = (epoch + 1) * task.steps_per_epoch
        # One for all measurements, which then differ by the weights alone.
        options = {"seed": demo.MEASURE_SEED, "verbose": 0}
        last = demo.sample(bond, task, prompts, arguments.samples, **options)
        path.append(
            {
                "sequences": steps * batch_size * trainer.sequences,
                **describe(last, pool),
                "kl": kl_to_start(bond, prompts, trainer),
            }
        )
        print("  ".join(f"{k} {path[-1][k]:.3f}" for k in PROGRESS))

    measure(-1)
    count = task.epochs * task.steps_per_epoch * batch_size
    data = task.world.make_examples(count, seed=100 + arguments.seed)
    bond.fit(
        data["prompts"],
        batch_size=batch_size,
        epochs=task.epochs,
        steps_per_epoch=task.steps_per_epoch,
        verbose=0,
        callbacks=[
            task.anchor,
            keras.callbacks.LambdaCallback(on_epoch_end=measure),
        ],
    )
    return path


def describe(samples, pool):
    """What `demo.Samples` earn, against a pool of the initial policy."""
    import keras_bond

    return {
        "reward": float(samples.rewards.mean()),
        "win_rate": keras_bond.evaluation.win_rate(
            samples.rewards, pool.rewards
        ),
        "perfect": float((samples.rewards == 1.0).mean()),
    }


def kl_to_start(bond, prompts, trainer):
    """KL to the initial policy in nats, a mean over `KL_SAMPLES` samples per
    prompt."""
    logs = bond.evaluate(
        prompts * (KL_SAMPLES // trainer.policy_samples),
        batch_size=64,
        return_dict=True,
        verbose=0,
    )
    return logs["kl_ref"]


def write(output, rows, path, name):
    """Writes table.md, path.csv and reward_kl.png."""
    (output / "table.md").write_text(demo.format_table(rows, COLUMNS))
    with open(output / "path.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, PROGRESS)
        writer.writeheader()
        writer.writerows(path)
    plot(
        rows,
        [(row["kl"], row["reward"]) for row in path[1:]],
        output / "reward_kl.png",
        name,
    )


def plot(
    rows,
    path,
    file,
    name,
):
    """Draws reward against KL: the Best-of-N curve and the policy's way.

    Args:
        rows: list of dicts, Best-of-N of the initial policy, the policy last.
        path: list of pairs of KL and reward, the policy on its way.
        file: path of the picture.
        name: str. The method.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    *start, after = rows
    marked = [row for row in start if row["n"] in demo.SHOWN]
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    axes.plot(
        [row["kl"] for row in start],
        [row["reward"] for row in start],
        color="0.45",
        label="Best-of-N of the initial policy (N samples per answer)",
    )
    for row in marked:
        axes.plot(row["kl"], row["reward"], "o", color="0.45")
        axes.annotate(
            f"N = {row['n']}",
            (row["kl"], row["reward"]),
            textcoords="offset points",
            xytext=(8, -10),
            color="0.35",
        )
    way = [(start[0]["kl"], start[0]["reward"]), *path]
    axes.plot(
        *zip(*way),
        ".--",
        color="tab:orange",
        alpha=0.6,
        label=f"{name}, on its way (the same prompts)",
    )
    axes.plot(
        after["kl"],
        after["reward"],
        "*",
        markersize=16,
        color="tab:orange",
        label=f"{name}, trained (1 sample per answer)",
    )
    axes.set_xlabel("KL to the initial policy (nats)")
    axes.set_ylabel("mean reward on held-out prompts")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
