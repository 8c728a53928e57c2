"""What every benchmark does with its numbers: tables, CSV, pictures."""

import csv
import time


def markdown(columns, rows):
    """A Markdown table of strings."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_csv(path, records):
    """Writes records, arrays as their numbers separated by spaces."""
    rows = [
        {
            name: " ".join(f"{x:.6g}" for x in value.ravel())
            if hasattr(value, "ravel")
            else value
            for name, value in record.items()
            if name != "curve"
        }
        for record in records
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        writer.writerows(rows)


def save(figure, path, bottom=0.0):
    """Writes a picture, with a free share `bottom` for a common legend."""
    import matplotlib.pyplot as plt

    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.tight_layout(rect=(0, bottom, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def progress(message):
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)
