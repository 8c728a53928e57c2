"""Measures a policy, trains it with BOND, measures it again, shows both.

What `quickstart.py`, `arithmetic.py` and `integration/` share. The starting
policy is measured once, by a pool of samples for each held-out prompt, which
holds its exact Best-of-N for every N.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# Samples per prompt, of the initial policy and in the final table.
POOL_SIZE = SAMPLES = 64
# Another one than that of the pool, whose draws would be the same.
MEASURE_SEED = 1_000_000
SEQUENCES_PER_STEP = 192
WEIGHTS = (0, 0.5, 0.75, 1, 1.25, 1.5, 2)
CURVE = (1, 2, 3, 4, 5, 6, 7, 8)
SHOWN = (1, 2, 4, 8)
COLUMNS = {
    "reward": "reward",
    "win_rate": "win rate",
    "kl": "KL to the initial policy",
}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A class of `keras_bond`, and the samples that it draws for a prompt."""

    name: str
    class_name: str
    policy_samples: int
    anchor_samples: int

    @property
    def sequences(self):
        return self.policy_samples + self.anchor_samples

    def make(self, policy, reward, **arguments):
        """Builds the trainer; the numbers of `JBond` are its own."""
        import keras_bond

        if self.class_name == "Bond":
            arguments["num_policy_samples"] = self.policy_samples
            arguments["num_anchor_samples"] = self.anchor_samples
        trainer = getattr(keras_bond, self.class_name)
        return trainer(policy, reward, **arguments)


TRAINERS = {
    "jbond": Trainer("J-BOND", "JBond", 1, 2),
    "bond-1+2": Trainer("BOND 1+2", "Bond", 1, 2),
    "bond": Trainer("BOND 4+4", "Bond", 4, 4),
}


def parse_arguments(description, long=None):
    """Reads the command line and sets the backend, before Keras is imported.

    Args:
        description: str. The first lines of `--help`.
        long: str. What `--long` does, in an example that has it.

    Returns:
        a namespace with `backend`, `trainer`, `seed`, `epochs`, `held_out`,
        `front`, `output` and, where there is one, `long`.
    """
    parser = argparse.ArgumentParser(description=description)
    backends = ("jax", "tensorflow", "torch")
    parser.add_argument("--backend", choices=backends, default="jax")
    parser.add_argument("--trainer", choices=TRAINERS, default="bond")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="default: as documented")
    parser.add_argument("--held-out", type=int, default=64, help="prompts")
    parser.add_argument(
        "--front",
        action="store_true",
        help="measure interpolated and extrapolated weights, too",
    )
    if long:
        parser.add_argument("--long", action="store_true", help=long)
    default = HERE / "runs" / pathlib.Path(sys.argv[0]).stem
    parser.add_argument("--output", type=pathlib.Path, default=default)
    arguments = parser.parse_args()
    set_backend(arguments.backend)
    return arguments


def set_backend(backend):
    """Imports Keras and KerasHub, which run on `backend`."""
    os.environ["KERAS_BACKEND"] = backend
    if backend == "torch":
        # On models this small its threads wait longer for each other than
        # they compute, above all beside other processes.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    from keras_bond.packages import import_quietly

    import_quietly("keras_hub")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned, and with which settings.

    Attributes:
        world: module with `make_examples` and `held_out_prompts`.
        reward: function of prompts and completions.
        preset: the SFT policy, a folder in `presets/` or a whole path.
        max_prompt_length: int. Tokens.
        max_completion_length: int. Tokens.
        learning_rate: float. Highest of the schedule.
        anchor: a callback that moves the anchor, such as
            `keras_bond.callbacks.AnchorRefresh(32)`.
        kl_weight: float. See `keras_bond.JBond`.
        epochs: int.
        steps_per_epoch: int.
        trainer: a `Trainer`.
        sequences_per_step: int. Generated sequences, policy's and anchor's.
    """

    world: object
    reward: object
    preset: str
    max_prompt_length: int
    max_completion_length: int
    learning_rate: float
    anchor: object
    kl_weight: float
    epochs: int
    steps_per_epoch: int
    trainer: Trainer = TRAINERS["bond"]
    sequences_per_step: int = SEQUENCES_PER_STEP

    @property
    def batch_size(self):
        """Prompts a step."""
        return self.sequences_per_step // self.trainer.sequences


def run(task, arguments):
    """Measures, trains, measures again; prints a table and writes the files.

    Args:
        task: a `Task`.
        arguments: see `parse_arguments`.

    Returns:
        list of dicts: Best-of-N of the initial policy for each N, and the
        policy after training.
    """
    started = time.time()
    epochs = arguments.epochs or task.epochs
    bond = build(task, arguments.seed, epochs)
    held_out = task.world.held_out_prompts(arguments.held_out, seed=1)

    print(f"Best-of-N before: {POOL_SIZE} samples for each prompt ...")
    measuring = -time.process_time()
    pool = sample(bond, task, held_out, POOL_SIZE)
    frontier = best_of_n(pool.rewards)
    measuring += time.process_time()

    name = task.trainer.name
    print(f"{name}: {epochs} epochs of {task.steps_per_epoch} steps ...")
    train(bond, task, arguments.seed, epochs)

    print(f"After training: {SAMPLES} single samples for each prompt ...")
    measuring -= time.process_time()
    after = measure(bond, held_out, SAMPLES)
    rows = [*frontier, compare(after, pool)]
    measuring += time.process_time()

    arguments.output.mkdir(parents=True, exist_ok=True)
    show_samples(held_out, pool, after)
    print(format_table(rows))
    (arguments.output / "table.md").write_text(format_table(rows))
    print(say_result(rows))
    plot(rows, arguments.output / "best_of_n.png")
    if arguments.front:
        show_front(bond, held_out, arguments.output / "front.png")
    bond.policy.save_to_preset(str(arguments.output / "policy"))
    print(
        f"\nWrote best_of_n.png, table.md and the trained policy to "
        f"{arguments.output} after {time.time() - started:.0f} s, with "
        f"{time.process_time():.0f} CPU seconds, {measuring:.0f} of them for "
        "measuring."
    )
    return rows


def load_preset(preset):
    """The policy of a folder in `presets`, or of any other folder."""
    import keras_hub

    from keras_bond.packages import silenced

    # SentencePiece says that it normalizes nothing.
    with silenced():
        return keras_hub.models.CausalLM.from_preset(
            str(HERE / "presets" / preset)
        )


def build(task, seed, epochs):
    """Loads the SFT policy and compiles the task's trainer around it."""
    import keras

    bond = task.trainer.make(
        load_preset(task.preset),
        task.reward,
        max_prompt_length=task.max_prompt_length,
        max_completion_length=task.max_completion_length,
        kl_weight=task.kl_weight,
        reference=True,
        seed=seed,
    )
    steps = epochs * task.steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(
        task.learning_rate / 10,
        decay_steps=max(1, steps - 10),
        alpha=0.1,
        warmup_target=task.learning_rate,
        warmup_steps=10,
    )
    bond.compile(optimizer=keras.optimizers.Adam(schedule))
    return bond


@dataclasses.dataclass(frozen=True)
class Samples:
    """Completions of some prompts, and their rewards.

    Attributes:
        completions: list of lists of str.
        rewards: float array `(prompts, samples)`.
        kls: float array `(prompts, samples)`, exact KL per token to the
            initial policy, summed over each completion; or `None`.
    """

    completions: list
    rewards: object
    kls: object = None


def sample(bond, task, prompts, num_samples, **options):
    """Draws and scores `num_samples` completions of the policy a prompt.

    `options` are arguments of `bond.generate`.
    """
    import numpy as np

    options = {"batch_size": 16, "verbose": 1, **options}
    completions = bond.generate(prompts, num_samples=num_samples, **options)
    rewards = [
        task.reward([prompt] * num_samples, texts)
        for prompt, texts in zip(prompts, completions)
    ]
    return Samples(completions, np.array(rewards, "float64"))


def train(bond, task, seed, epochs):
    """Fits the policy, on a prompt once."""
    count = epochs * task.steps_per_epoch * task.batch_size
    prompts = task.world.make_examples(count, seed=100 + seed)["prompts"]
    bond.fit(
        prompts,
        batch_size=task.batch_size,
        epochs=epochs,
        steps_per_epoch=task.steps_per_epoch,
        callbacks=[task.anchor],
    )


def measure(bond, prompts, num_samples):
    """Draws, scores and compares with the initial policy, as `Samples`."""
    drawn, rewards = bond.draw_scored(
        prompts, num_samples, batch_size=16, seed=MEASURE_SEED
    )
    kls = bond.kls_of(drawn, batch_size=64).reshape(rewards.shape)
    starts = range(0, len(drawn), num_samples)
    texts = [drawn.completions[i : i + num_samples] for i in starts]
    return Samples(texts, rewards, kls)


def best_of_n(rewards):
    """Rows of the initial policy and its Best-of-N, for each N of `CURVE`.

    Args:
        rewards: float array `(prompts, samples)`, of the initial policy.
    """
    from keras_bond.evaluation import best_of_n_frontier

    by_prompt = [best_of_n_frontier(own[None], CURVE) for own in rewards]
    rows = [
        {
            "name": f"best of {n} of the initial policy",
            "n": n,
            **means_and_errors(
                {key: [rows[i][key] for rows in by_prompt] for key in COLUMNS}
            ),
        }
        for i, n in enumerate(CURVE)
    ]
    rows[0]["name"] = "before: one sample"
    return rows


def compare(after, pool):
    """The row of the trained policy.

    Args:
        after: what `measure` returned.
        pool: `Samples` of the initial policy.
    """
    from keras_bond.evaluation import win_rate

    pairs = zip(after.rewards, pool.rewards)
    by_prompt = {
        "reward": after.rewards.mean(axis=1),
        "win_rate": [
            win_rate(own[None], others[None]) for own, others in pairs
        ],
        "kl": after.kls.mean(axis=1),
    }
    return {
        "name": "after: one sample",
        "n": 1,
        **means_and_errors(by_prompt),
    }


def means_and_errors(by_prompt):
    """The mean of each number, and as `..._error` its standard error.

    Args:
        by_prompt: dict of arrays `(prompts,)`.
    """
    found = {}
    for name, values in by_prompt.items():
        found[name], found[f"{name}_error"] = mean_and_error(values)
    return found


def mean_and_error(by_prompt):
    """A mean over prompts and its standard error, two floats.

    Prompts are the independent units: samples of one resemble each other.
    """
    import numpy as np

    values = np.asarray(by_prompt, "float64")
    error = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(error)


def format_table(rows, columns=COLUMNS):
    """Writes the rows as a Markdown table, with standard errors over prompts.

    Args:
        rows: list of dicts with `name`, `n` and the keys of `columns`, perhaps
            with their `..._error`.
        columns: dict. The heading of each number in a row.
    """
    headings = ["policy", "samples per answer", *columns.values()]
    lines = ["", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        if row["n"] not in SHOWN:
            continue
        numbers = " | ".join(cell(row, key) for key in columns)
        lines.append(f"| {row['name']} | {row['n']} | {numbers} |")
    return "\n".join(lines) + "\n"


def cell(row, key):
    """A number with its error, where it has one that can be seen."""
    error = row.get(f"{key}_error", 0.0)
    return f"{row[key]:.3f}" + f" ± {error:.3f}" * (error >= 5e-4)


def show_samples(held_out, pool, after, count=3):
    """Prints typical prompts with a typical sample from before and after.

    Those are the prompts whose mean reward has changed by about the median,
    and of each the sample whose reward is nearest to the prompt's mean.
    """
    import numpy as np

    means = [samples.rewards.mean(axis=1) for samples in (pool, after)]
    order = np.argsort(means[1] - means[0], kind="stable")
    first = max(0, (len(order) - count) // 2)
    for i in order[first : first + count]:
        # Control characters of a text could change the terminal.
        print(f"\n{held_out[i]!r}")
        for name, samples in (("before", pool), ("after ", after)):
            rewards = samples.rewards[i]
            typical = np.argmin(np.abs(rewards - rewards.mean()))
            text = samples.completions[i][typical]
            print(f"  {name} [{rewards[typical]:.2f}] {text!r}")


def plot(rows, file):
    """Draws reward against samples per answer, and what one sample is worth.

    Args:
        rows: list of dicts, Best-of-N of the initial policy, the policy last.
        file: path of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    *start, after = rows
    numbers, rewards = ([row[key] for row in start] for key in ("n", "reward"))
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    axes.plot(
        numbers,
        rewards,
        "o-",
        color="0.45",
        label="before training: the best of N answers",
    )
    worth = min(equal_n(rows), numbers[-1])
    axes.plot((1, worth), (after["reward"],) * 2, ":", color="tab:orange")
    axes.plot(
        1,
        after["reward"],
        "*",
        markersize=16,
        color="tab:orange",
        label="after training: one answer",
    )
    axes.annotate(
        f"1 answer = best of {say_n(rows)}",
        (1, after["reward"]),
        textcoords="offset points",
        xytext=(12, 8),
        color="tab:orange",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.set_xlabel("answers drawn for each prompt")
    axes.set_ylabel("mean reward on new prompts")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def show_front(bond, held_out, file):
    """Prints and draws what policies between and beyond are worth."""
    from keras_bond import evaluation

    front = evaluation.weight_front(
        bond, held_out, WEIGHTS, num_samples=SAMPLES
    )
    print(f"\n{front}")
    evaluation.plot_weight_front(front).savefig(file, dpi=150)


def equal_n(rows):
    """The N whose Best-of-N has the reward of the policy after training.

    It lies between two N where the logarithm of N does; it is infinite beyond
    the last, and 1 where training has lowered the reward.
    """
    import numpy as np

    *start, after = rows
    rewards = [row["reward"] for row in start]
    logs = np.log([row["n"] for row in start])
    beyond = float("inf")
    return float(
        np.exp(np.interp(after["reward"], rewards, logs, right=beyond))
    )


def say_n(rows):
    """`equal_n` as a text."""
    n = equal_n(rows)
    return f"{n:.1f}" if n < float("inf") else f"more than {CURVE[-1]}"


def say_result(rows):
    """What training has reached, in a sentence."""
    before, after = rows[0], rows[-1]
    return (
        f"One answer is now as good as the best of {say_n(rows)} before: "
        f"reward {after['reward']:.2f}, up from {before['reward']:.2f}, for "
        f"{after['kl']:.2f} nats of KL to the initial policy."
    )
