"""The numbers of a run as pictures."""

import io
import math

from keras_bond.evaluation import plots

# What is drawn together, as far as it was logged: a title, its unit, names.
CURVES = (
    ("Reward", "reward", ("reward", "anchor/reward", "val_reward")),
    ("KL", "nats a sequence", ("kl", "kl_ref", "val_kl", "val_kl_ref")),
    (
        "Against the anchor",
        "share",
        ("bond/win_rate", "bond/penalised_fraction", "val_bond/win_rate"),
    ),
    (
        "Held-out reward, and the one that is trained on",
        "reward",
        ("gold/reward", "gold/proxy_reward"),
    ),
    ("Do both rewards agree?", "share of pairs", ("gold/agreement",)),
    ("Length", "tokens", ("completions/mean_length",)),
    (
        "Warning signs",
        "share",
        (
            "completions/clipped_ratio",
            "frac_reward_zero_std",
            "frac_prompts_unscored",
            "train/updated_fraction",
        ),
    ),
    ("Entropy", "nats a token", ("entropy",)),
    ("Terms of the loss", "", ("forward_kl_loss", "backward_kl_loss")),
)


def draw(numbers):
    """Draws all curves of a run.

    Args:
        numbers: dict from each logged name to a list of float by epoch.

    Returns:
        str, an SVG; `""` if nothing that is drawn was logged.

    Raises:
        ImportError: if matplotlib is missing.
    """
    shown = [
        (title, unit, [n for n in names if _is_there(numbers.get(n, ()))])
        for title, unit, names in CURVES
    ]
    shown = [curve for curve in shown if curve[2]]
    if not shown:
        return ""
    rows = math.ceil(len(shown) / 2)
    figure = plots.new_figure(figsize=(11, 3.2 * rows), layout="constrained")
    for i, (title, unit, names) in enumerate(shown):
        axis = figure.add_subplot(rows, 2, i + 1)
        for name in names:
            epochs = range(1, len(numbers[name]) + 1)
            axis.plot(epochs, numbers[name], marker=".", label=name)
        axis.set(title=title, ylabel=unit, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return as_svg(figure)


def as_svg(figure):
    """Returns a figure as SVG that can stand in a page, as str."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    # Without the lines that only a file of its own needs.
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _is_there(values):
    return any(math.isfinite(value) for value in values)
