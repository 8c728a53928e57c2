"""Places of prompts in their data, for messages."""

import contextlib
import dataclasses


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where rows come from.

    Attributes:
        path: str, the JSONL file of the rows, or `None`.
        lines: list of int, the line of each row in the file, or `None`.
        first: int. Number of the first row.
    """

    path: str | None = None
    lines: list | None = None
    first: int = 0

    def name(self, index, kind="prompt"):
        """Returns how messages name a row, such as "prompt 3"."""
        number = f"{kind} {self.first + index}"
        if self.path is None:
            return number
        return f"{number}, line {self.lines[index]} of {self.path}"

    def error(self, error, index, kind="prompt"):
        """Returns an error of the same kind that names a row too."""
        kinds = (TypeError, ValueError)
        kind_of_error = next(k for k in kinds if isinstance(error, k))
        return kind_of_error(f"{error}, in {self.name(index, kind)}")

    @contextlib.contextmanager
    def naming(self, index, kind="prompt"):
        """Returns a context whose errors name a row too."""
        try:
            yield
        except (TypeError, ValueError) as error:
            raise self.error(error, index, kind) from None


# Where rows come from that no file holds.
MEMORY = Origin()


class FileColumns(dict):
    """Columns that remember where their rows are from, such as a file.

    Args:
        columns: dict of lists.
        origin: an `Origin`.
    """

    def __init__(self, columns, origin):
        super().__init__(columns)
        self.origin = origin


def origin_of(data):
    """Returns the `Origin` of columns; that of in-memory data has no file."""
    return getattr(data, "origin", MEMORY)
