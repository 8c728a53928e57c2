"""Measurements on held-out prompts during training."""

import math

import keras
import numpy as np

from keras_bond import backend
from keras_bond.arguments import check_count
from keras_bond.arguments import check_list
from keras_bond.arguments import shown
from keras_bond.callbacks import completions
from keras_bond.callbacks.gold_reward import GoldReward
from keras_bond.callbacks.held_out_files import HeldOutFiles
from keras_bond.callbacks.interface import check_trainer
from keras_bond.callbacks.reference_pool import DEFAULT_NS
from keras_bond.callbacks.reference_pool import ReferencePool

LOGGED = (
    "reward",
    "win_rate",
    "kl",
    "effective_n",
    "gold_reward",
    "agreement",
)


class HeldOut(keras.callbacks.Callback):
    """Measures the policy on held-out prompts, and shows what it answers.

    It draws completions of the prompts before training and after each epoch,
    scores them, and adds to the logged numbers

    - `held_out/reward`: the mean reward,
    - `held_out/win_rate`: against one sample of the initial policy, ties
      counting one half,
    - `held_out/effective_n`: the N of the Best-of-N that one sample is worth
      (`keras_bond.evaluation.effective_n`),
    - `held_out/kl`: the KL to the initial policy, in nats per sequence, exact
      over the vocabulary,
    - `held_out/gold_reward`: the mean of a reward that training does not see,
    - `held_out/agreement`: how often both rewards order two completions of a
      prompt alike; 1 is always, 1/2 is by chance.

    The last two need `gold_reward`. Win rate, effective N and KL compare with
    the initial policy, which a trainer keeps with LoRA or with
    `reference=True`; otherwise they are left out. For the comparison, a pool
    of samples of the initial policy is drawn once, when training begins.

    From the same completions come

    - a few prompts to read, in the terminal or as HTML in a notebook: whole
      completions of the policy and, below, of the initial policy, or of the
      anchor where there is no reference, drawn with the same random numbers,
    - in the folder `path`, `completions.jsonl` with one line per prompt and
      step, `held_out.json` with all numbers, and `best_of_n.png`, the policy
      against Best-of-N of the initial policy,
    - a warning when the gold reward is below its best by more than chance: the
      policy exploits the reward that it is trained on (Gao et al., ICML 2023,
      arXiv 2210.10760). Training continues, unless
      `keras.callbacks.EarlyStopping` ends it.

    Put it before `CSVLogger`, `TensorBoard`, `ModelCheckpoint` and
    `EarlyStopping` in `callbacks`, so that they see the numbers. Draws depend
    on the seed of the model alone, and training is not disturbed. A resumed
    run continues the files; a run that begins with step 0 replaces them. Where
    the model, its reward or `prompts` are others than in the `fit` before, the
    pool is drawn anew, and so are all points. A reward that is changed in
    place, or by another process, is not recognized, as rewards may differ by
    chance: use a new `HeldOut` with another `path`.

    Args:
        prompts: list of str, or a dict of columns as in `fit`: held out from
            training, a hundred or more for narrow intervals. Prompts of which
            a completion cannot be scored do not count.
        path: folder for the files, or `None`.
        gold_reward: a reward that training does not see, or `None`: whatever
            `keras_bond.JBond` takes as `reward`, such as a rule, a larger
            model or an LLM judge. The columns of `prompts` go to both rewards.
        every: int. Steps between further draws within an epoch, or `None`.
            They are shown and written but not logged.
        ns: tuple of int. Which Best-of-N are shown. Defaults to `(1, 2, 4, 8)`
            where the trainer keeps a reference. If given, it must keep one.
        pool_size: int. Samples of the initial policy per prompt: a multiple of
            `num_samples`, and more than the largest N. Defaults to 32.
        num_samples: int. Samples of the policy per prompt. Defaults to 8.
        num_shown: int. Prompts to show, 0 for none. Defaults to 4.
        batch_size: int. Prompts at a time. Defaults to 32.
        verbose: 0 or 1. Whether to print anything. Defaults to 1.

    Raises:
        TypeError, ValueError: if `gold_reward` is not a reward, a number is
            out of range, the model is not a `keras_bond` trainer or lacks the
            reference that `ns` needs, fewer than two prompts can be scored, or
            a run is resumed with other prompts.
        ImportError: if the picture cannot be drawn, since matplotlib is
            missing (extra `plots`).

    Attributes:
        points: list of dicts, one for each draw: `step` in optimizer updates,
            the numbers above without `held_out/`, `effective_n_low` and
            `effective_n_high`, the ends of the 95 % interval, and
            `is_overoptimized`.
        records: list of dicts, the completions that were shown last.
        frontier: list of dicts, Best-of-N of the initial policy, see
            `keras_bond.evaluation.best_of_n_frontier`; `None` without one.

    Example:

    ```python
    bond.fit(
        prompts,
        epochs=20,
        callbacks=[
            keras_bond.callbacks.HeldOut(
                held_out, path="run", gold_reward=another_reward
            ),
            keras.callbacks.CSVLogger("run/log.csv"),
            keras.callbacks.EarlyStopping(
                "held_out/gold_reward",
                mode="max",
                patience=3,
                restore_best_weights=True,
            ),
        ],
    )
    ```
    """

    def __init__(
        self,
        prompts,
        path=None,
        gold_reward=None,
        every=None,
        ns=None,
        pool_size=32,
        num_samples=8,
        num_shown=4,
        batch_size=None,
        verbose=1,
    ):
        super().__init__()
        _check(gold_reward, every, ns, pool_size, num_samples, num_shown)
        if batch_size is not None:
            check_count("batch_size", batch_size, 1)
        self.prompts = prompts
        self.every = every
        self.ns = ns
        self.pool_size = pool_size
        self.num_samples = num_samples
        self.num_shown = num_shown
        self.batch_size = batch_size
        self.verbose = verbose
        self.points = []
        self.records = []
        self._files = None if path is None else HeldOutFiles(path)
        self._gold = None if gold_reward is None else GoldReward(gold_reward)
        self._pool = None
        # The model, reward and prompts that were measured, and how the files
        # know the prompts.
        self._measured = None
        self._fingerprint = None
        self._is_starting = False

    @property
    def frontier(self):
        return self._pool and self._pool.frontier

    def on_train_begin(self, logs=None):
        check_trainer(self, self.model)
        self._check_reference()
        if self._files is not None:
            self._files.check_folder(with_picture=self._has_reference())
        self._is_starting = True

    def on_epoch_begin(self, epoch, logs=None):
        # Other callbacks may load the weights of a run in `on_train_begin`.
        if self._is_starting:
            self._resume(self.model.num_updates())
            if self._has_reference() and self._pool is None:
                self._pool = ReferencePool(self.draw, self.ns, self.pool_size)
            self._measure()
            self._is_starting = False

    def on_train_batch_end(self, batch, logs=None):
        if self.every is not None and (batch + 1) % self.every == 0:
            self.model.sync()
            self._measure()

    def on_epoch_end(self, epoch, logs=None):
        point = self._measure()
        if logs is not None:
            names = [name for name in LOGGED if name in point]
            logs.update({f"held_out/{name}": point[name] for name in names})
        if self._is_first_process():
            self._write(with_picture=self._pool is not None)
            if self._pool is not None and self.verbose:
                print("\n" + self._pool.summary(point))

    def draw(self, weights, turn=0):
        """Draws and scores completions of the prompts.

        Args:
            weights: str. Name of a weight set.
            turn: int. Another turn draws other completions.

        Returns:
            `(samples, rewards)`: a `keras_bond.rewards.Samples`, and a float64
            array `(prompts, num_samples)`.
        """
        # The prompts are tokenized each time: those of a thousand take a tenth
        # of a second, their completions minutes.
        samples, rewards = self.model.draw_scored(
            self.prompts,
            self.num_samples,
            batch_size=self.batch_size,
            weights=weights,
            seed=(self.model.seed + turn) % 2**31,
        )
        return samples, np.asarray(rewards, "float64")

    def _measure(self):
        """The point of the present weights, drawn unless it is there."""
        step = self.model.num_updates()
        if self.points and self.points[-1]["step"] == step:
            return self.points[-1]
        samples, rewards = self.draw("policy")
        self._check_prompts(completions.fingerprint(samples))
        point, gold = {"step": step}, None
        if self._pool is None:
            point["reward"] = _mean_of_scored(rewards)
        else:
            point.update(self._pool.compare(rewards), kl=self._kl(samples))
        if self._gold is not None:
            gold = self._gold.score(samples, rewards)
            point.update(self._gold.compare(step, gold, rewards))
        self.points.append(point)
        records = completions.records(
            step, samples, rewards, self._other_answers(), gold
        )
        if self._is_first_process():
            self._report(records, point)
        return point

    def _other_answers(self):
        if self._pool is not None:
            return self._pool.answers
        return completions.anchor_answers(*self.draw("anchor"))

    def _report(self, records, point):
        if self._files is not None:
            if self._is_starting:
                self._files.keep_before(point["step"])
            self._files.append(records)
            self._write(with_picture=False)
        self.records = records[: self.num_shown]
        if self.verbose and self.num_shown:
            completions.show(self.records)
        if self.verbose and point.get("is_overoptimized"):
            print("\n" + self._gold.warning(point))

    def _write(self, with_picture):
        if self._files is not None:
            best = [] if self._gold is None else self._gold.records
            self._files.write(
                self.frontier, self.points, best, self._fingerprint
            )
            if with_picture:
                self._files.draw(self.frontier, self.points)

    def _resume(self, step):
        """Keeps what was measured before a step, which is measured anew.

        What belongs to another model, reward or to other prompts goes.
        """
        measured = (self.model, self.model.scorer, self.prompts)
        is_first = self._measured is None
        is_other = not is_first and any(
            now is not before for now, before in zip(measured, self._measured)
        )
        if is_other:
            self._pool = None
        if step == 0 or is_other:
            self._set_past([], [], None)
        elif is_first and self._files is not None:
            self._set_past(*self._files.read())
        self._measured = measured
        self.points = [p for p in self.points if p["step"] < step]
        if self._gold is not None:
            self._gold.keep_before(step)

    def _set_past(self, points, best_gold, fingerprint):
        self.points = points
        self._fingerprint = fingerprint
        if self._gold is not None:
            self._gold.records = best_gold

    def _check_prompts(self, fingerprint):
        if self._fingerprint not in (None, fingerprint):
            raise ValueError(
                "`prompts` of `HeldOut` must stay the same in a run, whose "
                "measurements are compared prompt by prompt: pass those of "
                "before, or another `path` with a new `HeldOut`. Received: "
                f"{fingerprint['count']} prompts, where the run so far has "
                f"{self._fingerprint['count']} with other contents"
            )
        self._fingerprint = fingerprint

    def _kl(self, samples):
        kls = self.model.kls_of(samples, batch_size=self.batch_size)
        return float(np.mean(kls, dtype="float64"))

    def _has_reference(self):
        return "reference" in self.model.weight_names()

    def _is_first_process(self):
        return backend.devices.process_index() == 0

    def _check_reference(self):
        if self.ns is not None and not self._has_reference():
            raise ValueError(
                "`ns` of `HeldOut` compares with the initial policy, which a "
                "trainer keeps with LoRA or when told: keras_bond.Bond(..., "
                f"reference=True). Received: ns={tuple(self.ns)} and a model "
                f"of type {type(self.model).__name__} without a reference"
            )


def _check(gold_reward, every, ns, pool_size, num_samples, num_shown):
    if every is not None:
        check_count("every", every, 1)
    check_list("ns", () if ns is None else ns, "integers")
    for n in ns or ():
        check_count("ns", n, 1)
    # Agreement compares samples of one prompt.
    check_count("num_samples", num_samples, 1 if gold_reward is None else 2)
    check_count("num_shown", num_shown, 0)
    check_count("pool_size", pool_size, 2)
    ns = DEFAULT_NS if ns is None else ns
    if pool_size <= max(ns, default=0) or pool_size % num_samples:
        raise ValueError(
            "`pool_size` must be above the largest N in `ns` and a multiple "
            f"of `num_samples`. Received: pool_size={shown(pool_size)}, "
            f"ns={shown(tuple(ns))}, num_samples={shown(num_samples)}"
        )


def _mean_of_scored(rewards):
    scored = rewards[np.isfinite(rewards).all(axis=1)]
    return float(scored.mean()) if scored.size else math.nan
