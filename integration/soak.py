"""A long training takes no more memory than a short one.

    python integration/soak.py --backend jax [--steps 2000]

Trains LoRA adapters of a tiny policy for many steps with evaluations between
them, and prints resident memory, compilations and the logged numbers ten times
on the way. Ends with exit status 1 if memory grows by more than 5 % after the
first tenth, something is compiled after it, or a number is not finite.
"""

import argparse
import logging
import math
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
MOST_GROWTH = 0.05
PARTS, BATCH = 10, 4


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--backend", choices=("jax", "tensorflow", "torch"), default="jax"
    )
    parser.add_argument("--steps", type=int, default=2000)
    return parser.parse_args()


def resident_bytes():
    """Memory of this process, as Linux counts it."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Compilations(logging.Handler):
    """Counts what JAX compiles; TensorFlow's functions are asked."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def emit(self, record):
        self.count += record.getMessage().startswith("Finished XLA compilation")

    def start(self, bond, backend):
        self.bond, self.backend = bond, backend
        if backend == "jax":
            logger = logging.getLogger("jax._src.dispatch")
            logger.addHandler(self)
            logger.setLevel(logging.DEBUG)
            logger.propagate = False

    def total(self):
        """Compiled programs so far; nothing is compiled on PyTorch."""
        if self.backend == "tensorflow":
            stages = self.bond.stages.values()
            return sum(s.experimental_get_tracing_count() for s in stages)
        return self.count


def main():
    arguments = parse_arguments()
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.path.append(str(ROOT))
    from tests import tiny  # isort: skip
    import keras

    import keras_bond

    policy = tiny.make_policy(num_layers=1)
    policy.backbone.enable_lora(2)
    bond = keras_bond.JBond(
        policy,
        tiny.length_reward,
        max_prompt_length=8,
        max_completion_length=4,
        seed=1,
    )
    bond.compile(keras.optimizers.Adam(1e-5))
    compilations = Compilations()
    compilations.start(bond, arguments.backend)
    rule = keras_bond.callbacks.AnchorEMA(0.02)
    steps = arguments.steps // PARTS
    prompts = (tiny.PROMPTS * steps)[: BATCH * steps]
    print("| steps | resident [MiB] | compiled so far | loss | reward |")
    print("| --- | --- | --- | --- | --- |")
    memory, compiled, finite = [], [], True
    for part in range(PARTS):
        history = bond.fit(
            prompts, batch_size=BATCH, verbose=0, callbacks=[rule]
        ).history
        logged = bond.evaluate(
            tiny.PROMPTS, batch_size=BATCH, verbose=0, return_dict=True
        )
        values = [*(v[0] for v in history.values()), *logged.values()]
        finite &= all(math.isfinite(value) for value in values)
        memory.append(resident_bytes())
        compiled.append(compilations.total())
        print(
            f"| {(part + 1) * steps} | {memory[-1] / 2**20:.1f} | "
            f"{compiled[-1]} | {history['loss'][0]:.3f} | "
            f"{logged['reward']:.3f} |",
            flush=True,
        )
    sys.exit(not is_steady(memory, compiled, finite))


def is_steady(memory, compiled, finite):
    """Whether memory and compilations stay constant; prints the result."""
    growth = max(memory[1:]) / memory[0] - 1
    later = compiled[-1] - compiled[0]
    print(
        f"\nMemory {growth:+.1%} after the first tenth, {later} compilations "
        f"there, numbers {'finite' if finite else 'NOT FINITE'}."
    )
    return growth <= MOST_GROWTH and later == 0 and finite


if __name__ == "__main__":
    main()
