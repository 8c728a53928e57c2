"""Files of `HeldOut`: completions, numbers and a picture."""

import json
import pathlib

from keras_bond import files
from keras_bond.evaluation import plots


class HeldOutFiles:
    """The files in the folder of a run, continued when the run is resumed.

    Args:
        folder: str or path.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.completions = self.folder / "completions.jsonl"
        self.numbers = self.folder / "held_out.json"
        self.picture = self.folder / "best_of_n.png"

    def check_folder(self, with_picture):
        """Makes the folder, and checks that a picture can be drawn.

        Raises:
            ImportError: if a picture is wanted and matplotlib is missing.
        """
        if with_picture:
            plots.new_figure()
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self):
        """Reads the numbers of the run so far.

        Returns:
            `(points, best_gold)`: lists, see `HeldOut.points` and
            `GoldReward.records`; empty if there is no file.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.numbers.exists():
            return [], []
        try:
            found = json.loads(self.numbers.read_text(encoding="utf-8"))
            points = [{**p, "step": int(p["step"])} for p in found["points"]]
            best = [{**r, "step": int(r["step"])} for r in found["best_gold"]]
            return points, best
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`{self.numbers.name}` must hold what "
                "`keras_bond.callbacks.HeldOut` writes: move it away, or pass "
                f"another `path`. Received: {self.numbers}, "
                f"{type(error).__name__}: {error}"
            ) from error

    def write(self, frontier, points, best_gold):
        """Writes the numbers of the run so far, with one atomic write."""
        numbers = {
            "frontier": frontier,
            "points": points,
            "best_gold": best_gold,
        }
        with files.atomic_file(self.numbers) as unfinished:
            unfinished.write_text(json.dumps(numbers, indent=1), "utf-8")

    def draw(self, frontier, points):
        """Draws the policy against Best-of-N, with one atomic write."""
        # A run that was resumed may have had no reference before.
        compared = [point for point in points if "kl" in point]
        figure = plots.plot_best_of_n(frontier, compared)
        with files.atomic_file(self.picture) as unfinished:
            figure.savefig(unfinished, dpi=150)

    def append(self, records):
        """Appends one line of JSON for each record."""
        lines = [json.dumps(r, ensure_ascii=False) for r in records]
        files.append_lines(self.completions, lines)

    def keep(self, steps):
        """Keeps the completions of some steps only, with one atomic write.

        The lines of a step that a killed run had not finished go, so that the
        resumed run does not write them twice.

        Args:
            steps: set of int; if it is empty, nothing is read.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.completions.exists():
            return
        kept = b""
        if steps:
            lines = self.completions.read_bytes().splitlines(keepends=True)
            kept = b"".join(x for x in lines if self._step(x) in steps)
        with files.atomic_file(self.completions) as unfinished:
            unfinished.write_bytes(kept)

    def _step(self, line):
        """The step of a line; `None` if a killed run left it incomplete."""
        try:
            return int(json.loads(line)["step"])
        except (KeyError, TypeError, ValueError) as error:
            if not line.endswith(b"\n"):
                return None
            raise ValueError(
                f"`{self.completions.name}` must hold a line of JSON with a "
                "`step` for each completion, as "
                "`keras_bond.callbacks.HeldOut` writes them: move it away, or "
                f"pass another `path`. Received: {self.completions} with the "
                f"line {line[:80]!r}"
            ) from error
