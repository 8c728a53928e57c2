"""Of how many samples of the start one sample of the policy is the best."""

import json
import pathlib

import keras
import numpy as np

from keras_bond import backend
from keras_bond import evaluation
from keras_bond import files
from keras_bond.arguments import check_count
from keras_bond.arguments import check_list
from keras_bond.callbacks.checks import num_updates
from keras_bond.evaluation import plots

PREFIX = "best_of_n/"
LOGGED = ("effective_n", "win_rate", "reward", "kl")


class BestOfNReport(keras.callbacks.Callback):
    """Measures after each epoch what training set out for.

    Before training it draws a pool of samples of the start for some held-out
    prompts, and from it, exactly, reward and KL of its Best-of-N
    (`keras_bond.evaluation.best_of_n_frontier`). After each epoch it draws from
    the policy for the same prompts, and adds to the logged numbers

    - `best_of_n/effective_n`: the N of the Best-of-N that one sample is worth
      (`keras_bond.evaluation.effective_n`),
    - `best_of_n/win_rate`: against one sample of the start, ties one half,
    - `best_of_n/reward`, and `best_of_n/kl` to the start, in nats a sequence,
      exact over the vocabulary.

    Put it before `CSVLogger`, TensorBoard, `ModelCheckpoint` or `EarlyStopping`
    in `callbacks`, so that these see the numbers. Draws depend on the model's
    seed alone; training is not disturbed.

    Args:
        prompts: list of str, or a dict of columns as in `fit`: held out from
            training, a hundred or more for narrow intervals. Those of which a
            completion cannot be scored do not count.
        path: path of a picture (`".png"`, `".svg"`, ...) that is drawn anew
            after each epoch, reward against KL and effective N by step; the
            numbers are written beside it under the same name with `".json"`,
            which `python -m keras_bond report` reads. Or `None`.
        ns: tuple of int, ascending. Which Best-of-N are shown. Defaults to
            `(1, 2, 4, 8)`.
        pool_size: int. Samples of the start a prompt, more than the largest N,
            in whole multiples of `num_samples`. Defaults to 32.
        num_samples: int. Samples of the policy a prompt. Defaults to 8.
        batch_size: int. Prompts at a time. Defaults to 32.
        verbose: 0 or 1. Whether to print a line after each epoch.

    Raises:
        ValueError: if a number is out of range, the model is no `keras_bond`
            trainer or keeps no reference, or fewer than two prompts can be
            scored.
        ImportError: if there is a `path` and matplotlib is missing.

    Attributes:
        frontier: list of dicts, Best-of-N of the start, once training began.
        points: list of dicts, one for each epoch: `step`, `reward`, `win_rate`,
            `kl`, `effective_n` and the ends `effective_n_low` and
            `effective_n_high` of its 95 % interval.

    Example:

    ```python
    report = keras_bond.callbacks.BestOfNReport(held_out, "run/best_of_n.png")
    log = keras.callbacks.CSVLogger("run/log.csv")
    bond.fit(prompts, callbacks=[report, log])
    ```
    """

    def __init__(
        self,
        prompts,
        path=None,
        ns=(1, 2, 4, 8),
        pool_size=32,
        num_samples=8,
        batch_size=None,
        verbose=1,
    ):
        super().__init__()
        check_list("ns", ns, "integers")
        for n in ns:
            check_count("ns", n, 1)
        check_count("num_samples", num_samples, 1)
        check_count("pool_size", pool_size, 2)
        if pool_size <= max(ns, default=0) or pool_size % num_samples:
            raise ValueError(
                "`pool_size` must be above the largest N in `ns` and a "
                f"multiple of `num_samples`. Received: pool_size={pool_size}, "
                f"ns={tuple(ns)}, num_samples={num_samples}"
            )
        if path is not None:
            plots.new_figure()
        self.prompts = prompts
        self.path = path and pathlib.Path(path)
        self.ns = tuple(ns)
        self.pool_size = pool_size
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.verbose = verbose
        self.frontier = None
        self.points = []

    def on_train_begin(self, logs=None):
        if "reference" not in getattr(self.model, "weight_sets", {}):
            raise ValueError(
                "`BestOfNReport` compares with the start, which a trainer "
                "keeps with LoRA or when told: keras_bond.Bond(..., "
                "reference=True). Received: a model of type "
                f"{type(self.model).__name__} without a reference"
            )
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.frontier is None:
            self._pool = self._draw_pool()
            scored = np.isfinite(self._pool).all(axis=1)
            self.frontier = self._frontier_of(scored)

    def on_epoch_end(self, epoch, logs=None):
        if epoch > 0 and not self.points:
            self.points = self._read_points()
        point = self._measure()
        earlier = [p for p in self.points if p["step"] < point["step"]]
        self.points = [*earlier, point]
        if logs is not None:
            logs.update({PREFIX + name: point[name] for name in LOGGED})
        if backend.devices.process_index() == 0:
            self._show()

    def _draw_pool(self):
        """Draws in as many turns as it takes, with one compiled function."""
        seeds = range(1, 1 + self.pool_size // self.num_samples)
        parts = [self._draw("reference", seed) for seed in seeds]
        return np.concatenate(parts, axis=1)

    def _draw(self, weights, seed):
        _, rewards = self.model.draw_scored(
            self.prompts,
            self.num_samples,
            batch_size=self.batch_size,
            weights=weights,
            seed=(self.model.seed + seed) % 2**31,
        )
        return rewards

    def _frontier_of(self, scored):
        if scored.sum() < 2:
            raise ValueError(
                "At least 2 of the `prompts` of `BestOfNReport` must get a "
                f"reward for each completion. Received: {scored.sum()} of "
                f"{len(scored)}"
            )
        pool = self._pool[scored]
        return evaluation.best_of_n_frontier(pool, self.ns)

    def _measure(self):
        rewards = self._draw("policy", 0)
        scored = np.isfinite(rewards).all(axis=1)
        scored &= np.isfinite(self._pool).all(axis=1)
        self.frontier = self._frontier_of(scored)
        mine, start = rewards[scored], self._pool[scored]
        n = evaluation.effective_n(mine, start)
        logs = self.model.evaluate(
            self.prompts,
            batch_size=self.batch_size,
            return_dict=True,
            verbose=0,
        )
        return {
            "step": num_updates(self.model),
            "reward": float(mine.mean()),
            "win_rate": evaluation.win_rate(mine, start),
            "kl": float(logs["kl_ref"]),
            "effective_n": n.value,
            "effective_n_low": n.low,
            "effective_n_high": n.high,
        }

    def _show(self):
        if self.path is not None:
            self._write()
        if self.verbose:
            print("\n" + self._line())

    def _line(self):
        point = self.points[-1]
        return (
            "One sample is worth the best of "
            f"{point['effective_n']:.2f} [{point['effective_n_low']:.2f}, "
            f"{point['effective_n_high']:.2f}] of the start: reward "
            f"{point['reward']:.3f}, from {self.frontier[0]['reward']:.3f}, at "
            f"a KL of {point['kl']:.3f} nats"
        )

    def _write(self):
        numbers = {"frontier": self.frontier, "points": self.points}
        path = self.path.with_suffix(".json")
        with files.atomic_file(path) as unfinished:
            unfinished.write_text(json.dumps(numbers, indent=1))
        figure = plots.plot_best_of_n(self.frontier, self.points)
        with files.atomic_file(self.path) as unfinished:
            figure.savefig(unfinished, dpi=150)

    def _read_points(self):
        """What a run that is resumed had measured before."""
        if self.path is None or not self.path.with_suffix(".json").exists():
            return []
        return json.loads(self.path.with_suffix(".json").read_text())["points"]
