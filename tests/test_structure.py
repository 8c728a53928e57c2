"""The house rules that a reader would otherwise have to enforce."""

import ast
import inspect
import pathlib
import subprocess
import sys

import keras_bond

PACKAGE = pathlib.Path(keras_bond.__file__).parent
GOLDEN = pathlib.Path(__file__).parent / "golden" / "public_api.txt"
# Lowest first: imports only go down.
FLOORS = (
    "version",
    "arguments",
    "packages",
    "files",
    "turns",
    "formulas",
    "backend",
    "distribution",
    "rewards",
    "data",
    "rollouts",
    "evaluation",
    "hugging_face",
    "callbacks",
    "training",
    "export",
    "diagnosis",
    "planning",
)
BACKENDS = {"jax", "tensorflow", "torch"}
# Scripts and modules of processes of their own, whose backend is TensorFlow
# whatever that of the user: they write and read what TensorFlow Serving runs.
# The package itself never imports them, so it needs no TensorFlow.
SERVING = pathlib.Path("export", "serving")


def modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE), file.read_text()


def imported(source):
    """Every dotted name that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def test_imports_only_go_down():
    for path, source in modules():
        if path.parts[0] not in FLOORS:
            continue
        floor = FLOORS.index(path.parts[0])
        for name in imported(source):
            if name.startswith("keras_bond."):
                below = name.split(".")[1]
                assert FLOORS.index(below) <= floor, f"{path} imports {name}"


def test_only_backend_knows_the_backends():
    for path, source in modules():
        for name in imported(source):
            assert not name.startswith(("keras.src", "keras_hub.src")), path
            if path.parts[0] != "backend" and path.parent != SERVING:
                assert name.split(".")[0] not in BACKENDS, f"{path}: {name}"


def test_serving_processes_are_never_imported():
    for path, source in modules():
        if path.parent != SERVING:
            for name in imported(source):
                assert not name.startswith("keras_bond.export.serving"), path


def test_formulas_are_keras_ops_only():
    allowed = ("keras.ops", "math", "keras_bond.formulas")
    for path, source in modules():
        if path.parts[0] == "formulas":
            for name in imported(source):
                assert name.startswith(allowed), f"{path} imports {name}"


def test_files_stay_short():
    for path, source in modules():
        assert source.count("\n") <= 500, path


def test_the_package_imports_no_model_library():
    """`import keras_hub` takes seconds and pulls TensorFlow in."""
    code = "import sys, keras_bond; assert 'keras_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def public_api():
    """One line for each public name, with its signature."""
    lines = []
    pending = [("keras_bond", keras_bond)]
    while pending:
        prefix, module = pending.pop(0)
        for name in sorted(module.__all__):
            thing, path = getattr(module, name), f"{prefix}.{name}"
            if inspect.ismodule(thing):
                pending.append((path, thing))
            elif callable(thing):
                lines.append(f"{path}{inspect.signature(thing)}")
    return "\n".join(lines) + "\n"


def test_the_public_names_are_the_golden_ones():
    """A changed name or argument breaks users: change it knowingly."""
    assert public_api() == GOLDEN.read_text(), (
        "The public API changed. If that is meant, run "
        "`python -m tests.test_structure` to write the golden file anew."
    )


if __name__ == "__main__":
    GOLDEN.write_text(public_api())
