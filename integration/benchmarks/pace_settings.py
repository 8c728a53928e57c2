"""Settings of the study of pace: anchor rules, rates, batches and samples."""

import dataclasses


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
    "fixed 4, twice the steps": (fixed(4, k=4, **{**REAL, "steps": 100}),),
    "copy 16, four times the steps": (copies(16, **{**SLOW, "steps": 200}),),
    "fixed 4, four times the steps": (fixed(4, k=4, **{**SLOW, "steps": 200}),),
}
RESTAURANT_SETTINGS = {
    # Anchor, rate and KL term of `restaurants.py`.
    "ema 0.02, kl 0.1": (ema(0.02, 0.1, learning_rate=1.5e-4),),
    "ema 0.05": (ema(0.05),),
    "copy 32": (copies(32),),
    "fixed 4": (fixed(4),),
}
BY_TASK = {
    "facts": SETTINGS,
    "problems": SETTINGS,
    "restaurants": RESTAURANT_SETTINGS,
    "real": REAL_SETTINGS,
}
