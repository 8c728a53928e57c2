"""How fast the effective N grows, and what KL it costs: a study of settings.

    python integration/benchmarks/pace.py [--task facts|problems|real]
        [--settings NAME ...] [--seeds 0] [--backend jax] [--output FOLDER]
        [--preset FOLDER] [--report]

Trains the policy of an example with each of the settings by the product's own
`fit` and measures it with fresh samples for held-out prompts. What counts is
the KL to the initial policy over that of Best-of-N at the same win rate, called
waste, and how many sequences and CPU seconds the policy has cost. A row for
each run is added to results.csv; `--report` only writes the table.
"""

import argparse
import csv
import dataclasses
import math
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

import demo
from reports import markdown
from reports import progress

OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "runs" / "pace"
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


@dataclasses.dataclass(frozen=True)
class Stage:
    """Some steps with one target.

    Attributes:
        rule: name of a class of `keras_bond.callbacks`. With `AnchorFixed` the
            anchor is the initial policy.
        rule_arguments: tuple.
        learning_rate: float. Highest of the schedule.
        last: float. Share of it that is left at the end; 1 keeps it constant.
        steps: int.
        sequences: int. Of a step, policy's and anchor's.
        samples: pair of int, those of policy and anchor for a prompt.
        optimizer: name of a class of `keras.optimizers`.
        updates: int. Updates from each batch of samples.
        options: dict of further arguments of `keras_bond.Bond`.
    """

    rule: str
    rule_arguments: tuple
    learning_rate: float = 2e-4
    last: float = 0.1
    steps: int = 96
    sequences: int = 96
    samples: tuple = (4, 4)
    optimizer: str = "Adam"
    updates: int = 1
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def batch_size(self):
        return self.sequences // sum(self.samples)

    @property
    def total(self):
        return self.batch_size * sum(self.samples) * self.steps


def ema(rate, kl_weight=0.0, **more):
    """The anchor follows as a moving average."""
    return Stage("AnchorEMA", (rate,), options={"kl_weight": kl_weight}, **more)


def copies(every, kl_weight=0.0, **more):
    """The anchor becomes a copy of the policy, again and again."""
    options = {"kl_weight": kl_weight}
    return Stage("AnchorRefresh", (every,), options=options, **more)


def fixed(n, k=8, **more):
    """Best-of-n of the initial policy is the target."""
    return Stage(
        "AnchorFixed", (), samples=(4, k), options={"best_of_n": n}, **more
    )


# The stages of each run, one after the other.
SETTINGS = {
    "ema 0.02, kl 0.5": (
        ema(0.02, 0.5, learning_rate=1.5e-4, steps=90, sequences=192),
    ),
    "ema 0.05": (ema(0.05),),
    "ema 0.05, kl 0.25": (ema(0.05, 0.25, steps=90, sequences=192),),
    "ema 0.1": (ema(0.1),),
    "copy 16": (copies(16),),
    "copy 32": (copies(32),),
    "copy 32, 2 x batch": (copies(32, steps=90, sequences=192),),
    "copy 32, constant": (copies(32, last=1.0),),
    "copy 32, kl 0.25": (copies(32, 0.25, last=1.0, steps=128),),
    "copy 32, 1e-4": (copies(32, last=1.0, learning_rate=1e-4, steps=128),),
    "copy 64, 4e-4": (copies(64, last=1.0, learning_rate=4e-4, steps=128),),
    "copy 32, 2 + 2": (copies(32, samples=(2, 2)),),
    "copy 32, 8 + 8": (copies(32, samples=(8, 8)),),
    "copy 32, Muon": (copies(32, learning_rate=4e-4, optimizer="Muon"),),
    "copy 64, 2 updates": (copies(64, updates=2),),
    "copy 64, 2 updates, half": (copies(64, steps=64, updates=2),),
    "copy 128, 4 updates": (copies(128, updates=4),),
    "fixed 4": (fixed(4, steps=90, sequences=192),),
    "fixed 8": (fixed(8, steps=90, sequences=192),),
    "copy 32, 160": (copies(32, sequences=160),),
    "copy 32, 2.2e-4, 128": (copies(32, learning_rate=2.2e-4, sequences=128),),
    "long": (copies(32, last=0.1, steps=160, sequences=192),),
    "fixed 4, to the end": (fixed(4, last=0.05, steps=160, sequences=192),),
    "copy 32, fixed 6": (
        copies(32, last=1.0, steps=80),
        fixed(6, last=0.05, steps=64, sequences=144),
    ),
    "copy 32, fixed 8": (
        copies(32, last=1.0, steps=96),
        fixed(8, last=0.05, steps=64, sequences=144),
    ),
    "copy 32, fixed 16": (
        copies(32, last=1.0, steps=160),
        fixed(16, k=16, last=0.05, steps=64, sequences=240),
    ),
}
REAL = {"learning_rate": 1.2e-3, "last": 0.05, "steps": 50, "sequences": 24}
SLOW = {**REAL, "learning_rate": 6e-4}
REAL_SETTINGS = {
    "ema 0.05": (ema(0.05, **REAL),),
    "ema 0.05, 6e-4": (ema(0.05, **SLOW),),
    "ema 0.1": (ema(0.1, **REAL),),
    "ema 0.1, kl 0.5": (ema(0.1, 0.5, **REAL),),
    "ema 0.1, 6e-4": (ema(0.1, **SLOW),),
    "copy 8": (copies(8, **REAL),),
    "copy 16": (copies(16, **REAL),),
    "copy 16, kl 0.25": (copies(16, 0.25, **REAL),),
    "copy 8, 6e-4": (copies(8, **SLOW),),
    "copy 16, 6e-4": (copies(16, **SLOW),),
    "copy 8, 2 + 2": (copies(8, samples=(2, 2), **REAL),),
    "fixed 4": (fixed(4, k=4, **REAL),),
    "fixed 8": (fixed(8, **{**REAL, "steps": 33, "sequences": 36}),),
    "copy 8, fixed 4": (
        copies(8, **{**REAL, "steps": 26, "last": 1.0}),
        fixed(4, k=4, **{**REAL, "steps": 24}),
    ),
    "copy 16, four times the steps": (copies(16, **{**SLOW, "steps": 200}),),
    "fixed 4, four times the steps": (fixed(4, k=4, **{**SLOW, "steps": 200}),),
}


class Task:
    """An example's policy, prompts and reward.

    Attributes:
        settings: dict of tuples of `Stage`.
        held_out: list of prompts to measure on.
        samples: int. Samples for each of them, of either policy.
    """

    samples = 64

    def make_bond(self, policy, seed, **options):
        """A trainer whose anchor and reference are `policy` as it is."""
        import keras_bond

        trainer = keras_bond.Bond
        if "updates" in options:
            from several_updates import SeveralUpdates as trainer
        return trainer(
            policy,
            self.reward,
            max_prompt_length=self.max_prompt_length,
            max_completion_length=self.max_completion_length,
            reference=True,
            seed=seed,
            **options,
        )


class Example(Task):
    """The world and the tiny policy of an example."""

    settings = SETTINGS

    def __init__(self, world, reward, preset, max_prompt, max_completion):
        self.world, self.reward, self.preset = world, reward, preset
        self.max_prompt_length = max_prompt
        self.max_completion_length = max_completion
        self.held_out = world.held_out_prompts(64, seed=1)

    def load_policy(self, seed):
        import keras_hub

        path = demo.HERE / "presets" / self.preset
        return keras_hub.models.CausalLM.from_preset(str(path))

    def prompts(self, count, seed):
        return self.world.make_examples(count, seed=100 + seed)["prompts"]


class RealModel(Task):
    """SmolLM2 with LoRA, asked for one short sentence."""

    settings = REAL_SETTINGS
    samples = 24
    max_completion_length = 24

    def __init__(self):
        import real_model

        self.reward, self.ask = real_model.reward, real_model.ask
        self.topics, held_out = real_model.TOPICS, real_model.HELD_OUT_TOPICS
        self.held_out = self.ask(held_out)[:32]
        self.questions = self.ask([t for t in self.topics if t not in held_out])

    def load_policy(self, seed):
        import keras
        import smollm2

        import keras_bond

        keras.utils.set_random_seed(seed)
        policy = smollm2.load_policy()
        policy.backbone.enable_lora(8)
        tokenizer = policy.preprocessor.tokenizer
        self.max_prompt_length = 1 + max(
            len(tokenizer(keras_bond.data.render_chat(chat, policy)))
            for chat in self.ask(self.topics)
        )
        return policy

    def prompts(self, count, seed):
        import numpy as np

        order = np.random.default_rng(seed).permutation(len(self.questions))
        return [self.questions[i] for i in np.resize(order, count)]


def load_task(name, preset=None):
    """A task; `preset` is a policy other than that of the example."""
    if name == "real":
        return RealModel()
    if name == "facts":
        import data_to_text as world

        preset = preset or "data_to_text"
        return Example(world, world.fact_coverage, preset, 32, 50)
    import word_problems as world

    return Example(world, world.is_correct, preset or "word_problems", 24, 17)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    tasks = ("facts", "problems", "real")
    parser.add_argument("--task", choices=tasks, default="facts")
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    add = parser.add_argument
    add("--preset", type=pathlib.Path, help="of a policy with its own --output")
    parser.add_argument("--report", action="store_true")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.csv"
    if not arguments.report:
        demo.set_backend(arguments.backend)
        study(arguments, path)
    table = report(path)
    print(table)
    (arguments.output / "table.md").write_text(table)


def study(arguments, path):
    """Runs the settings for each seed and adds a row of results for each."""
    task = load_task(
        arguments.task, arguments.preset and arguments.preset.resolve()
    )
    for seed in arguments.seeds:
        for name in arguments.settings or task.settings:
            progress(f"{name}, seed {seed}")
            policy = task.load_policy(seed)
            cost, bond = train(policy, task, task.settings[name], seed)
            pool = load_pool(
                bond, task, path.with_name(f"{arguments.task}.npy")
            )
            row = {
                "task": arguments.task,
                "setting": name,
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
    best = best_of_n_frontier(pool, list(range(1, 33)))
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
