"""Command line: `python -m keras_bond doctor`.

Arguments are read before anything heavy is imported; see `__init__.py`, too.
"""

import argparse
import sys

from keras_bond.packages import import_quietly
from keras_bond.version import __version__

# Those of `keras_bond.diagnosis.diagnose`, which imports Keras.
DTYPES = ("float32", "mixed_bfloat16", "bfloat16")
DURATION = "a minute on two CPU cores"


def main(arguments=None):
    """Runs the command that `arguments` name.

    Args:
        arguments: list of str. Defaults to those of the command line.

    Returns:
        int, the exit code: 0, or 1 if something is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m keras_bond")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser(
        "doctor",
        help="check that training is right on this installation",
        description=f"Checks in about {DURATION} that training is right "
        "here. The backend is that of KERAS_BACKEND.",
    )
    command.add_argument(
        "--dtype", choices=DTYPES, help="precision; defaults to that of Keras"
    )
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    print(f"This takes about {DURATION}.", flush=True)
    import_quietly("keras_hub")
    from keras_bond.diagnosis import doctor

    return 0 if doctor(dtype=chosen.dtype).passed else 1


if __name__ == "__main__":
    sys.exit(main())
