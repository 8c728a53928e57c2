"""`python -m keras_bond doctor`, and `python -m keras_bond report RUN`."""

import argparse
import sys

from keras_bond import reporting
from keras_bond.diagnosis import doctor
from keras_bond.diagnosis.examination import DTYPES


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
        description="Checks in less than a minute that training is right "
        "here. The backend is that of KERAS_BACKEND.",
    )
    command.add_argument(
        "--dtype", choices=DTYPES, help="precision; defaults to that of Keras"
    )
    command = commands.add_parser(
        "report",
        help="turn a run's log.csv and completions.jsonl into one HTML page",
    )
    command.add_argument("run", help="folder with the files of the run")
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    if chosen.command == "report":
        return _report(chosen.run)
    return 0 if doctor(dtype=chosen.dtype).passed else 1


def _report(run):
    try:
        print(reporting.write_report(run))
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
