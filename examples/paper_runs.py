"""The training runs behind `paper_figures.py`, each measured exactly.

The settings are those of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622),
sections 4 and 6, in a world of 4 prompts with 400 completions each (see
`enumerable.py`). What differs: the policy is a Gemma 3 of 16,000 parameters,
the learning rates suit it (Adam at 2e-3 for BOND, 1e-3 for J-BOND and
REINFORCE, batches of 32), and BOND counts a tie as half a win, for in so small
a world the same completion is often drawn twice.
"""

import csv
import dataclasses
import time

import numpy as np

WORLD = {"vocabulary_size": 8, "max_completion_length": 3, "num_prompts": 4}
METRICS = (
    "reward",
    "log_quantile",
    "win_rate",
    "kl_start",
    "forward_kl",
    "backward_kl",
    "total_variation",
)
SIZES = (4, 8, 16)
BETAS = (0.0, 0.5, 1.0)
RATES = (0.01, 0.02, 0.05, 0.1)
KL_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
LEARNED_SIZES = (4, 8)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How long and how many the runs are.

    Attributes:
        bond_steps: int. Optimizer steps of BOND, a multiple of `measurements`.
        jbond_steps: int. Those of J-BOND and REINFORCE.
        measurements: int. Measurements of a run, at equal distances.
        copies: int. How often each of the 4 prompts is in a batch.
        seeds: int. Runs of a setting; each seed has its own start and rewards.
    """

    bond_steps: int = 800
    jbond_steps: int = 480
    measurements: int = 40
    copies: int = 8
    seeds: int = 4


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        trainer: str. A class of `keras_bond`.
        options: dict of its arguments.
        steps: int. Optimizer steps.
        learning_rate: float. Of Adam, constant after 20 steps of warm-up.
        rule: str. A class of `keras_bond.callbacks` that moves the anchor.
        rule_arguments: tuple.
        n: int. The Best-of-N of the initial policy that it is compared with.
    """

    trainer: str
    options: dict
    steps: int
    learning_rate: float
    rule: str = "AnchorFixed"
    rule_arguments: tuple = ()
    n: int = 4


def bond(steps, n, jeffreys_beta=0.5, estimator="monte_carlo", refresh=None):
    """BOND of section 4: eqs. 10, 13 and 15 with 16 samples of the anchor."""
    options = {
        "best_of_n": n,
        "jeffreys_beta": jeffreys_beta,
        "estimator": estimator,
        "num_policy_samples": 1,
        "num_anchor_samples": 16,
    }
    if refresh is None:
        return Setting("Bond", options, steps, 2e-3, n=n)
    return Setting("Bond", options, steps, 2e-3, "AnchorRefresh", (refresh,), n)


def jbond(steps, rule="AnchorEMA", rule_argument=0.02, kl_weight=0.0):
    """J-BOND of section 6: algorithm 2, or with another anchor rule."""
    options = {"jeffreys_beta": 0.5, "kl_weight": kl_weight}
    return Setting("JBond", options, steps, 1e-3, rule, (rule_argument,))


def reinforce(steps, kl_weight):
    """The baseline of figure 7: 2 samples, leave-one-out mean."""
    options = {"kl_weight": kl_weight, "num_policy_samples": 2}
    return Setting("Reinforce", options, steps, 1e-3)


def settings(scale):
    """All settings by name.

    Args:
        scale: a `Scale`; iterative BOND runs 5 rounds of equal length.
    """
    long, short = scale.bond_steps, scale.jbond_steps
    chosen = {}
    for n in SIZES:
        for beta in BETAS:
            chosen[f"N={n} beta={beta:g}"] = bond(long, n, beta)
    for n in LEARNED_SIZES:
        chosen[f"N={n} learned"] = bond(long, n, estimator="learned")
    for n in (2, 4):
        chosen[f"iterative n={n}"] = bond(long, n, refresh=long // 5)
    for rate in RATES:
        chosen[f"jbond eta={rate:g}"] = jbond(short, rule_argument=rate)
    for weight in KL_WEIGHTS[1:]:
        chosen[f"jbond gamma={weight:g}"] = jbond(short, kl_weight=weight)
    chosen["jbond refresh=50"] = jbond(short, "AnchorRefresh", 50)
    for strength in STRENGTHS:
        chosen[f"reinforce {strength:g}"] = reinforce(short, strength)
    return chosen


# The settings that each figure shows; figure 8 needs no training.
SHOWN = {
    2: [f"N={n} beta={beta:g}" for n in SIZES for beta in BETAS],
    4: [f"N={n} beta=0.5" for n in SIZES] + ["iterative n=2", "iterative n=4"],
    5: ["jbond eta=0.02", "jbond refresh=50"],
    6: [f"jbond eta={rate:g}" for rate in RATES]
    + [f"jbond gamma={weight:g}" for weight in KL_WEIGHTS[1:]],
    7: ["jbond eta=0.02"] + [f"reinforce {s:g}" for s in STRENGTHS],
    8: [],
    9: [
        f"N={n} {kind}"
        for n in LEARNED_SIZES
        for kind in ("beta=0.5", "learned")
    ],
}


class Runner:
    """Trains one setting from several starts, compiling it only once.

    Args:
        setting: a `Setting`.
        scale: a `Scale`.
    """

    def __init__(self, setting, scale):
        import enumerable
        import keras

        import keras_bond

        self.setting, self.scale = setting, scale
        self.world = enumerable.World(**WORLD)
        self.policy = enumerable.make_policy(self.world, seed=0)
        rewards = enumerable.make_rewards(self.world, seed=0)
        self.table = enumerable.Table(self.world, rewards)
        self.trainer = getattr(keras_bond, setting.trainer)(
            self.policy,
            self.table,
            **self.world.lengths,
            **setting.options,
            reference=False,
            seed=0,
        )
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=10**9,
            warmup_target=setting.learning_rate,
            warmup_steps=20,
        )
        self.trainer.compile(keras.optimizers.Adam(schedule))
        self.variables = [
            *self.trainer.variables,
            *self.trainer.optimizer.variables,
        ]
        # Copies: on PyTorch the arrays would change with the variables.
        self.fresh = [
            np.array(keras.ops.convert_to_numpy(v)) for v in self.variables
        ]
        self.read = enumerable.log_probs_reader(self.world, self.policy)

    def run(self, seed):
        """Trains from the start of a seed.

        Returns:
            dict from "step" and each of `METRICS` to a list of
            `1 + scale.measurements` numbers, the start first.
        """
        import enumerable
        import keras

        import keras_bond

        rewards = enumerable.make_rewards(self.world, seed)
        self._begin(seed, rewards)
        start = np.exp(self.read())
        rows = []

        def measure(epoch=None, logs=None):
            probs = np.exp(self.read())
            rows.append(
                enumerable.measure(probs, start, rewards, self.setting.n)
            )

        measure()
        rule = getattr(keras_bond.callbacks, self.setting.rule)
        every = self.setting.steps // self.scale.measurements
        copies = self.scale.copies
        self.trainer.fit(
            self.world.prompts(copies * every),
            batch_size=copies * self.world.num_prompts,
            epochs=self.scale.measurements,
            callbacks=[
                rule(*self.setting.rule_arguments),
                keras.callbacks.LambdaCallback(on_epoch_end=measure),
            ],
            verbose=0,
        )
        curves = {name: [row[name] for row in rows] for name in METRICS}
        return {"step": [i * every for i in range(len(rows))], **curves}

    def _begin(self, seed, rewards):
        """Puts everything back to the start, in the world of this seed."""
        import enumerable
        import keras

        for variable, value in zip(self.variables, self.fresh):
            variable.assign(value)
        enumerable.set_weights(self.policy, seed)
        self.table.fill(rewards)
        for value, variable in zip(
            self.trainer.anchor.values, self.policy.trainable_variables
        ):
            value.assign(keras.ops.convert_to_numpy(variable))
        # Draws are numbered by the prompts seen: seeds must not share numbers.
        self.trainer.prompts_seen.assign(seed * 10_000_000)


def train_all(names, scale):
    """Trains the named settings with every seed, and shows the progress.

    Returns:
        dict from name to a dict from "step" and each of `METRICS` to an array
        `(seeds, measurements)`.
    """
    chosen, curves = settings(scale), {}
    progress = Progress(len(names) * scale.seeds)
    for name in names:
        runner, runs = Runner(chosen[name], scale), []
        for seed in range(scale.seeds):
            runs.append(runner.run(seed))
            progress.show(f"{name}, seed {seed}", runs[-1])
        curves[name] = {
            metric: np.array([run[metric] for run in runs])
            for metric in ("step", *METRICS)
        }
    return curves


class Progress:
    """Prints a line for each run.

    Args:
        total: int. Number of runs.
    """

    def __init__(self, total):
        self.total, self.done, self.started = total, 0, time.time()

    def show(self, name, run):
        """Prints where a run began and ended, and the time so far."""
        self.done += 1
        rewards = f"reward {run['reward'][0]:.2f} -> {run['reward'][-1]:.2f}"
        kl = f"KL to the initial policy {run['kl_start'][-1]:.2f} nats"
        seconds = f"{time.time() - self.started:.0f} s"
        print(
            f"[{self.done}/{self.total}] {name}: {rewards}, {kl} ({seconds})",
            flush=True,
        )


def write_csv(curves, file):
    """Writes every measurement of every run, one a line."""
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["setting", "seed", "step", *METRICS])
        for name, curve in curves.items():
            for seed, i in np.ndindex(curve["step"].shape):
                numbers = [f"{curve[m][seed, i]:.6g}" for m in METRICS]
                writer.writerow([name, seed, curve["step"][seed, i], *numbers])
