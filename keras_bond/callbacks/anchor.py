"""Rules by which the anchor follows the policy."""

import keras

from keras_bond.arguments import check_count
from keras_bond.arguments import is_number
from keras_bond.callbacks.checks import as_list
from keras_bond.callbacks.interface import check_trainer


class AnchorRule(keras.callbacks.Callback):
    """Base of the callbacks that set how the anchor moves.

    They set two numbers on the model when training begins; the training step
    applies them after each OPTIMIZER update, in its compiled part.
    `on_train_batch_end` would be the wrong place: it is called once for several
    steps under `steps_per_execution`, and for every micro-batch under
    `gradient_accumulation_steps`.

    Args:
        update_rate: float. Share of the policy in the new anchor.
        every: int. Optimizer updates from one anchor update to the next.
    """

    def __init__(self, update_rate, every):
        super().__init__()
        self.update_rate = update_rate
        self.every = every

    def on_train_begin(self, logs=None):
        check_trainer(self, self.model)
        self.model.set_anchor_rule(self.update_rate, self.every)


class AnchorEMA(AnchorRule):
    """Lets the anchor follow the policy as an exponential moving average.

    After each optimizer update `θ_anchor ← (1 - η) θ_anchor + η θ` (BOND,
    arXiv 2407.14622, eq. 18). The values are kept in float32: in bfloat16 such
    an average stalls. This is the rule of J-BOND; in the paper the reward grows
    most steadily with it, for a given KL.

    Args:
        update_rate: float in [0, 0.5]. Denoted η in the paper, which uses
            0.01 to 0.1. It is one MINUS what `keras.callbacks.SwapEMAWeights`
            and `optimizer.ema_momentum` call momentum. 0 keeps the anchor
            where it is. Defaults to 0.02.

    Raises:
        ValueError: if `update_rate` is out of range.

    Example:

    ```python
    bond.fit(prompts, callbacks=[keras_bond.callbacks.AnchorEMA(0.02)])
    ```
    """

    def __init__(self, update_rate=0.02):
        if not is_number(update_rate, 0, 0.5):
            hint = ""
            if is_number(update_rate, 0.5, 1) and update_rate < 1:
                hint = (
                    " This looks like a momentum; the update rate is one minus "
                    f"it: update_rate={1 - update_rate:.6g}."
                )
            raise ValueError(
                "`update_rate` must be between 0 and 0.5, typically 0.02; to "
                f"copy the policy use `AnchorRefresh`.{hint} "
                f"Received: update_rate={update_rate!r}"
            )
        super().__init__(update_rate=float(update_rate), every=1)

    def __repr__(self):
        return f"AnchorEMA(update_rate={self.update_rate})"


class AnchorRefresh(AnchorRule):
    """Makes the anchor a copy of the policy once in `every` updates.

    The hard refresh of iterative BOND (arXiv 2407.14622, algorithm 1) and the
    ablation of its figure 5: M rounds of Best-of-n equal Best-of-n^M.

    Args:
        every: int, at least 1. OPTIMIZER updates from one copy to the next.
            The paper uses 50 with J-BOND and 1,000 with BOND;
            `keras_bond.Bond` takes 32 if no rule is passed to `fit`.

    Raises:
        ValueError: if `every` is not a positive integer below 2**31.

    Example:

    ```python
    bond.fit(prompts, callbacks=[keras_bond.callbacks.AnchorRefresh(every=50)])
    ```
    """

    def __init__(self, every):
        check_count("every", every, 1, bits=31)
        super().__init__(update_rate=1.0, every=every)

    def __repr__(self):
        return f"AnchorRefresh(every={self.every})"


class AnchorFixed(AnchorRule):
    """Leaves the anchor where it is: the policy becomes its Best-of-N.

    BOND with a fixed reference, section 3 of arXiv 2407.14622. Reward and
    log-quantile saturate at those of Best-of-N of the initial policy.

    Example:

    ```python
    bond = keras_bond.Bond(policy, reward, best_of_n=4, ...)
    bond.compile(keras.optimizers.Adam(3e-6))
    bond.fit(prompts, callbacks=[keras_bond.callbacks.AnchorFixed()])
    ```
    """

    def __init__(self):
        super().__init__(update_rate=0.0, every=1)


def rule_of(callbacks):
    """Returns the rule among callbacks, which have one."""
    return next(c for c in callbacks if isinstance(c, AnchorRule))


def with_anchor_rule(callbacks, default, announce):
    """Adds a default if `callbacks` have no rule for the anchor.

    Args:
        callbacks: what a user passes to `fit`, or `None`.
        default: an `AnchorRule`.
        announce: bool. Whether to print that it was added, if the default
            lets the anchor move.

    Returns:
        list of `keras.callbacks.Callback`.

    Raises:
        ValueError: if there is more than one rule.
    """
    callbacks = as_list(callbacks)
    rules = [c for c in callbacks if isinstance(c, AnchorRule)]
    if len(rules) > 1:
        raise ValueError(
            "`callbacks` must hold at most one anchor rule. Received: "
            f"{[type(rule).__name__ for rule in rules]}"
        )
    if rules:
        return callbacks
    if announce and default.update_rate > 0:
        print(
            "`fit` got no anchor rule and adds keras_bond.callbacks."
            f"{default!r}. Pass one in `callbacks` to choose."
        )
    return [default, *callbacks]
