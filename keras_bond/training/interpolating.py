"""Policies on the line through the initial and the trained weights."""

import dataclasses
import warnings

import numpy as np
from keras import ops

from keras_bond.arguments import is_number
from keras_bond.backend import devices
from keras_bond.training.whole_files import lora_factors

LARGEST = 4.0
# Up to here extrapolated policies were about as good as trained ones.
MEASURED = 2.0


class Interpolating:
    """Mixin for `keras.Model` that interpolates and extrapolates its policy.

    It uses `policy`, `weight_sets`, `check_weights` of `WholeFiles`, and
    `sync`.
    """

    # The trained weights while the policy is elsewhere, else `None`.
    _interpolated = None

    def interpolate(self, weight):
        """Moves the policy along the line from its initial to trained weights.

        `policy = initial + weight · (trained - initial)`: 0 is the initial
        policy, 1 the trained one. In between, the policy is weaker and closer
        to the initial one (weight interpolation, Ramé et al., WARP, 2024,
        arXiv 2406.16768), and above 1 stronger and further away
        (extrapolation, Zheng et al., ExPO, 2024, arXiv 2404.16792). So one run
        gives policies of many effective N, and
        `keras_bond.evaluation.weight_front` tells which `weight` has which.

        LoRA adapters start at zero, so their product is scaled by `weight`;
        trained weights that do not belong to adapters move as above. The
        anchor moves in the same way, frozen and quantized weights stay.

        The trainer remembers the trained weights, in the memory of the host: a
        second call does not build on the first one, and `interpolate(1.0)`
        restores every bit. What changes the policy in another way, such as
        `fit`, `load_weights` or `set_weights`, begins from where it is and
        ends there: this is then the trained policy, with weight 1. Files hold
        the policy as it is, not the remembered weights: save the trainer at
        weight 1 to choose again later.

        Args:
            weight: float in [0, 4]. Above 2 there is a warning.

        Returns:
            float. The weight at which the policy was, 1 if it was trained or
            loaded since the last call.

        Raises:
            ValueError: if `weight` is out of range, or the initial weights are
                not known: without LoRA the trainer must keep them
                (`reference=True`), and with LoRA the adapters must have been
                zero.

        Example:

        ```python
        bond.fit(prompts, batch_size=32)
        bond.interpolate(1.5)
        bond.policy.generate("What is best-of-n sampling?")
        bond.interpolate(1.0)  # the policy that `fit` has trained
        ```
        """
        check_weight(weight)
        self.check_weights()
        line = Line(self.policy, self.weight_sets)
        self.sync()
        kept = self._interpolated
        if kept is None or not line.is_at(kept):
            kept = Interpolated(1.0, line.values())
        if weight > MEASURED:
            warnings.warn(
                f"A `weight` above {MEASURED:g} leaves the range in which "
                "extrapolated policies were measured to be as good as trained "
                "ones: look at `keras_bond.evaluation.weight_front`, or train "
                f"for longer. Received: weight={weight}",
                stacklevel=2,
            )
        line.assign(kept.trained, weight)
        now = Interpolated(float(weight), kept.trained)
        self._interpolated = None if weight == 1 else now
        return kept.weight


def check_weight(weight):
    """Raises an error if a weight of `interpolate` is out of range.

    Raises:
        ValueError: naming the range.
    """
    if not is_number(weight, 0, LARGEST):
        raise ValueError(
            f"`weight` must be a number between 0, the initial policy, and "
            f"{LARGEST:g}; 1 is the trained policy. Received: weight={weight!r}"
        )


@dataclasses.dataclass(frozen=True)
class Interpolated:
    """Where the policy is, and the trained weights that led there.

    Attributes:
        weight: float.
        trained: list of arrays, see `Line.values`.
    """

    weight: float
    trained: list


class Line:
    """The line through initial and trained weights of policy and anchor.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        weight_sets: its `keras_bond.training.weight_sets.WeightSets`.

    Raises:
        ValueError: if the initial weights are not known.
    """

    def __init__(self, policy, weight_sets):
        variables = policy.trainable_variables
        initial = _initial(policy, weight_sets.reference)
        self._variables = [*variables, *weight_sets.anchor.values]
        self._initial = [*initial, *initial]

    def values(self):
        """Copies the values of all variables to the host."""
        return [_to_host(variable) for variable in self._variables]

    def assign(self, trained, weight):
        """Moves the variables to a weight.

        Args:
            trained: list of arrays, the values at weight 1.
            weight: float.
        """
        points = zip(self._variables, self._points(trained, weight))
        for variable, point in points:
            variable.assign(point)

    def is_at(self, kept):
        """Whether every variable still has the value that `assign` gave it."""
        points = self._points(kept.trained, kept.weight)
        return all(
            np.array_equal(_to_host(ops.cast(point, v.dtype)), _to_host(v))
            for v, point in zip(self._variables, points)
        )

    def _points(self, trained, weight):
        for initial, end in zip(self._initial, trained):
            if weight == 1 or initial is None:
                yield end
            else:
                start = initial()
                way = np.asarray(end, "float32") - start
                yield start + np.float32(weight) * way


def _initial(policy, reference):
    """For each trainable variable a function that returns its initial value.

    `None` stands for what does not move: the first factor of an adapter, whose
    second one is scaled for both.
    """
    firsts, seconds = lora_factors(policy)
    variables = policy.trainable_variables
    adapters = {id(v) for v in (*firsts, *seconds)}
    others = [v for v in variables if id(v) not in adapters]
    if reference is None and others:
        raise ValueError(
            "`interpolate` needs the initial weights, which a trainer keeps "
            "with LoRA or when told: keras_bond.Bond(..., reference=True). "
            f"Received: reference=False and {len(others)} trained variables "
            f"that are not LoRA adapters, the first {others[0].path!r}"
        )
    firsts = {id(v) for v in firsts}
    seconds = {id(v) for v in seconds}
    initial = []
    for i, variable in enumerate(variables):
        kept = None if reference is None else reference.values[i]
        if id(variable) in firsts:
            initial.append(None)
        elif id(variable) in seconds:
            _check_zero(kept, variable)
            initial.append(lambda: np.float32(0))
        else:
            initial.append(lambda kept=kept: _to_host(kept))
    return initial


def _check_zero(kept, variable):
    if kept is not None and _to_host(kept).any():
        raise ValueError(
            "`interpolate` scales LoRA adapters, which must have been zero "
            "when the trainer was built. Merge what was learned before into "
            "the kernels: `keras_bond.export.save_preset`, then load that "
            "preset, `enable_lora` and build the trainer. Received: "
            f"{variable.path!r} was not zero"
        )


def _to_host(tensor):
    return devices.to_every_host(getattr(tensor, "value", tensor))
