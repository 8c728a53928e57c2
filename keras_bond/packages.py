"""Optional packages, looked for before a run begins."""

import importlib.util


def check_installed(what, extra, names):
    """Raises an error if optional packages are not installed.

    Nothing is imported: some of them take seconds.

    Args:
        what: str. What needs them, the beginning of the message.
        extra: str. The extra of keras_bond that installs them.
        names: list of str. The packages, as they are imported.

    Raises:
        ImportError: naming what to install.
    """
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if missing:
        raise ImportError(
            f"{what} needs packages that are not installed: `pip install "
            f"{' '.join(missing)}`, or keras_bond with its extra "
            f"`{extra}`. Received: {missing} not installed"
        )
