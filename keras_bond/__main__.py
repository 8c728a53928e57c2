"""Command line: `python -m keras_bond doctor`."""

import argparse
import sys

from keras_bond.diagnosis import doctor
from keras_bond.diagnosis.diagnose import DTYPES


def main(arguments=None):
    """Runs the command that `arguments` name.

    Args:
        arguments: list of str. Defaults to those of the command line.

    Returns:
        int, the exit code: 0, or 1 if something is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m keras_bond")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser(
        "doctor",
        help="check that training is right on this installation",
        description="Checks in about a minute that training is right "
        "here. The backend is that of KERAS_BACKEND.",
    )
    command.add_argument(
        "--dtype", choices=DTYPES, help="precision; defaults to that of Keras"
    )
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    return 0 if doctor(dtype=chosen.dtype).passed else 1


if __name__ == "__main__":
    sys.exit(main())
