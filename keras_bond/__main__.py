"""Commands: `python -m keras_bond report RUN`."""

import argparse
import sys

from keras_bond import reporting


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m keras_bond")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report",
        help="turns a run's log.csv and completions.jsonl into one HTML page",
    )
    report.add_argument("run", help="folder with the files of the run")
    arguments = parser.parse_args(argv)
    try:
        print(reporting.write_report(arguments.run))
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
