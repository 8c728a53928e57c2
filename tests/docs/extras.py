"""The extras of pyproject.toml: what they install, and where they are named."""

import builtins
import contextlib
import functools
import importlib.metadata
import importlib.util
import pathlib
import re
import tomllib
from unittest import mock

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
# An extra in a text, or in the brackets of an installation.
NAMED = re.compile(r"extras?\s+`(\w+)`|\.\[([\w,]+)\]")


@functools.cache
def read(path=ROOT / "pyproject.toml"):
    """The requirements of a project.

    Returns:
        `(always, extras)`: list of str, and a dict of lists.
    """
    project = tomllib.loads(path.read_text())["project"]
    return project["dependencies"], project["optional-dependencies"]


def optional(extras):
    """The names of the extras for users, which `all` installs together."""
    return sorted(Requirement(extras["all"][0]).extras)


def names_of(requirements):
    """The canonical names of the distributions that are required directly."""
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def closure(requirements):
    """The canonical names of all distributions that requirements install.

    What each of them requires is read from what is installed here.
    """
    pending, seen = [Requirement(line) for line in requirements], set()
    while pending:
        requirement = pending.pop()
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        if marker and not marker.evaluate({"extra": ""}):
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in importlib.metadata.requires(name) or []:
                further = Requirement(line)
                marker, further.marker = further.marker, None
                if marker is None or marker.evaluate({"extra": extra}):
                    pending.append(further)
    return {name for name, _ in seen}


def named(text):
    """The extras that a text names."""
    found = [one or several for one, several in NAMED.findall(text)]
    return {name for names in found for name in names.split(",")}


@functools.cache
def modules():
    """The distributions of each module that can be imported, but for ours."""
    return {
        module: {canonicalize_name(name) for name in names}
        for module, names in importlib.metadata.packages_distributions().items()
        if not (ROOT / module).exists()
    }


@contextlib.contextmanager
def only_named(text):
    """Hides optional packages from this package and from the code of a block.

    It finds those of the extras that `text` names. Others see all packages:
    `test_extras.py` runs the code where there are no others.
    """
    always, extras = read()
    found = named(text) & set(optional(extras))
    wanted = sum((extras[extra] for extra in found), [*always])
    others = sum((extras[extra] for extra in optional(extras)), [])
    absent = names_of(others) - closure(wanted)
    hidden = {module for module, names in modules().items() if names <= absent}
    import_, find_spec = builtins.__import__, importlib.util.find_spec

    def import_others(name, globals=None, *arguments, **keywords):
        importer = (globals or {}).get("__name__", "keras_bond")
        top = name.partition(".")[0]
        if top in hidden and importer.partition(".")[0] == "keras_bond":
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
        return import_(name, globals, *arguments, **keywords)

    def find_others(name, *arguments):
        return None if name in hidden else find_spec(name, *arguments)

    with (
        mock.patch.object(builtins, "__import__", import_others),
        mock.patch.object(importlib.util, "find_spec", find_others),
    ):
        yield
