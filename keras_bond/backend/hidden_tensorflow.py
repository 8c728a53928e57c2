"""TensorFlow without accelerators, where it is not the backend.

KerasHub's preprocessing runs on TensorFlow, whatever the backend. TensorFlow
takes all memory of all GPUs that it sees as soon as it runs anything.
"""

import importlib.machinery
import sys


def hide_accelerators():
    """Hides GPUs and TPUs from TensorFlow, now or when it is imported.

    It is not imported for it. If it has run something already, it keeps what it
    has. `tf.config.set_visible_devices` shows the devices again.
    """
    if sys.modules.get("tensorflow") is not None:
        _hide(sys.modules["tensorflow"])
    elif not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _hide(tensorflow):
    for kind in ("GPU", "TPU"):
        try:
            tensorflow.config.set_visible_devices([], kind)
        except RuntimeError:  # It has opened its devices.
            return


class _Finder:
    """Finds TensorFlow as Python does, and hides its devices once it runs."""

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_hide(module):
            run(module)
            _hide(module)

        spec.loader.exec_module = run_and_hide
        return spec
