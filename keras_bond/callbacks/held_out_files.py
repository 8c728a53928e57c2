"""Files of `HeldOut`: completions, numbers and a picture."""

import json
import math
import pathlib

from keras_bond import files
from keras_bond.evaluation import plots


class HeldOutFiles:
    """The files in the folder of a run, continued when the run is resumed.

    Args:
        folder: str or path.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder).expanduser()
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
            `(points, best_gold, fingerprint)`: two lists, see
            `HeldOut.points` and `GoldReward.records`, empty if there is no
            file; and the dict that `write` was given, or `None`.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.numbers.exists():
            return [], [], None
        try:
            found = json.loads(self.numbers.read_text(encoding="utf-8"))
            points = [{**p, "step": int(p["step"])} for p in found["points"]]
            best = [{**r, "step": int(r["step"])} for r in found["best_gold"]]
            fingerprint = found.get("prompts")
            if fingerprint is not None:
                fingerprint = {k: fingerprint[k] for k in ("count", "crc32")}
            return points, best, fingerprint
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`{self.numbers.name}` must hold what "
                "`keras_bond.callbacks.HeldOut` writes: move it away, or pass "
                f"another `path`. Received: {self.numbers}, "
                f"{type(error).__name__}: {error}"
            ) from error

    def write(self, frontier, points, best_gold, fingerprint):
        """Writes the numbers of the run so far, with one atomic write."""
        numbers = {
            "prompts": fingerprint,
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
        lines = [
            json.dumps(
                {name: _as_json(value) for name, value in record.items()},
                ensure_ascii=False,
                allow_nan=False,
            )
            for record in records
        ]
        files.append_lines(self.completions, lines)

    def keep_before(self, step):
        """Keeps the completions before a step only, with one atomic write.

        The lines of that step, and of later ones of a killed run, go, so that
        the resumed run does not write them twice.

        Args:
            step: int; if it is 0, nothing is read.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.completions.exists():
            return
        kept = b""
        if step > 0:
            lines = self.completions.read_bytes().splitlines(keepends=True)
            kept = b"".join(x for x in lines if self._step(x) < step)
        with files.atomic_file(self.completions) as unfinished:
            unfinished.write_bytes(kept)

    def _step(self, line):
        """The step of a line; infinity if a killed run left it incomplete."""
        try:
            return int(json.loads(line)["step"])
        except (KeyError, TypeError, ValueError) as error:
            if not line.endswith(b"\n"):
                return math.inf
            raise ValueError(
                f"`{self.completions.name}` must hold a line of JSON with a "
                "`step` for each completion, as "
                "`keras_bond.callbacks.HeldOut` writes them: move it away, or "
                f"pass another `path`. Received: {self.completions} with the "
                f"line {line[:80]!r}"
            ) from error


def _as_json(value):
    """Null for NaN and text for infinity, which other readers do not know."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)
