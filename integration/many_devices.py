"""Many devices do what one does: virtual ones, on any machine.

    python integration/many_devices.py [--families gemma3 gemma]
        [--trainers JBond Bond Reinforce BoNBoN] [--devices 8]

Trains a tiny policy for some steps on one device, with its batches spread over
all devices (`DataParallel`), and with its weights split over meshes of 1 x 8,
2 x 4 and 8 x 1, fully and with LoRA adapters, and compares: the completions
that were drawn must be the same, the loss and the trained weights equal to
1e-5. Ends with exit status 1 if one is not.
"""

import argparse
import os
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

TOLERANCE = 1e-5
FAMILIES = ("gemma3", "gemma")
TRAINERS = ("JBond", "Bond", "Reinforce", "BoNBoN")
MAX_LENGTHS = {"max_prompt_length": 12, "max_completion_length": 5}
# Enough heads and width that four devices share the heads and eight do not.
SHAPE = {"num_query_heads": 4, "num_key_value_heads": 4, "num_layers": 1}


def parse_arguments(argv=None):
    """Reads the command line, and makes the devices before JAX is imported."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--trainers", nargs="+", default=TRAINERS)
    parser.add_argument("--devices", type=int, default=8)
    arguments = parser.parse_args(argv)
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["JAX_PLATFORMS"] = "cpu"
    flag = "--xla_force_host_platform_device_count"
    others = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{others} {flag}={arguments.devices}"
    return arguments


def distributions(num_devices):
    """Yields a name, and how to make the distribution of that name."""
    import keras

    import keras_bond

    def split(shape):
        mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"))
        return keras_bond.distribution.ModelParallel(mesh)

    yield "rows over all", keras.distribution.DataParallel
    half = num_devices // 2
    for shape in ((1, num_devices), (2, half), (num_devices, 1)):
        yield f"mesh {shape[0]} x {shape[1]}", lambda shape=shape: split(shape)


class Recorder:
    """A reward that keeps what it was asked about."""

    def __init__(self):
        self.seen = []

    def __call__(self, prompts, completions):
        self.seen += list(zip(prompts, completions))
        return [sum(map(ord, text)) % 97 / 97.0 for text in completions]


def train(family, trainer, lora_rank):
    """Trains for two steps under the present distribution.

    Returns:
        dict: `drawn`, what the reward saw, `losses`, `weights`, arrays of
        policy and anchor, and `split`, how many variables are split.
    """
    import keras

    import keras_bond
    from keras_bond import backend
    from tests import numeric
    from tests import tiny

    policy = tiny.make_policy(family, **SHAPE)
    if lora_rank:
        keras.utils.set_random_seed(0)
        policy.backbone.enable_lora(lora_rank)
    reward = Recorder()
    bond = getattr(keras_bond, trainer)(policy, reward, **MAX_LENGTHS, seed=1)
    bond.compile(keras.optimizers.SGD(0.01))
    history = bond.fit(
        tiny.PROMPTS * 2,
        batch_size=8,
        verbose=0,
        callbacks=[keras_bond.callbacks.AnchorEMA(0.02)],
    )
    variables = [*policy.variables, *bond.anchor.values]
    drawn = list(zip(tiny.PROMPTS, bond.generate(tiny.PROMPTS)))
    return {
        "drawn": [*reward.seen, *drawn],
        "losses": history.history["loss"],
        "weights": numeric.values_of(variables),
        "split": sum(backend.devices.is_split(v) for v in variables),
    }


def difference(one, many):
    """Largest differences of losses and of weights, and the same draws."""
    import numpy as np

    def largest(name):
        pairs = zip(one[name], many[name])
        return max(float(np.max(np.abs(a - b))) for a, b in pairs)

    same = sorted(one["drawn"]) == sorted(many["drawn"])
    return same, largest("losses"), largest("weights")


def compare(family, trainer, lora_rank, num_devices):
    """Prints one line for every distribution; returns whether all agree."""
    import keras

    keras.distribution.set_distribution(None)
    one, agree = train(family, trainer, lora_rank), True
    for name, make in distributions(num_devices):
        keras.distribution.set_distribution(make())
        many = train(family, trainer, lora_rank)
        same, losses, weights = difference(one, many)
        agree &= same and max(losses, weights) <= TOLERANCE
        kind = f"LoRA {lora_rank}" if lora_rank else "full"
        print(
            f"{family:7} {trainer:10} {kind:7} {name:14} "
            f"{many['split']:3} split | draws "
            f"{'same' if same else 'DIFFER'}, loss {losses:.1e}, "
            f"weights {weights:.1e}",
            flush=True,
        )
    keras.distribution.set_distribution(None)
    return agree


def main():
    arguments = parse_arguments()
    results = [
        compare(family, trainer, rank, arguments.devices)
        for family in arguments.families
        for trainer in arguments.trainers
        for rank in (0, 2)
    ]
    print(f"{sum(results)} of {len(results)} agree on all distributions")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
