"""A run in TensorBoard: numbers, completions, picture and settings."""

import math
import pathlib
import time

import keras

from keras_bond import backend
from keras_bond.arguments import shown
from keras_bond.callbacks import completions
from keras_bond.callbacks.held_out import HeldOut
from keras_bond.callbacks.interface import check_trainer
from keras_bond.evaluation import plots
from keras_bond.packages import check_installed

# At the end of the names of its files.
SUFFIX = ".keras_bond"


class TensorBoard(keras.callbacks.Callback):
    """Shows a run whole in TensorBoard.

    - Scalars: all logged numbers, in groups such as `held_out` and `bond`, by
      optimizer updates; those of validation are another run, `validation`.
    - Text: the settings of the run and, with `held_out`, the completions that
      it shows, with their rewards.
    - Images: with `held_out` and a reference, the policy against Best-of-N.

    A run that begins with update 0 replaces what an earlier run has written in
    the folder. A resumed run continues it. Unlike
    `keras.callbacks.TensorBoard`, it does not need TensorFlow.

    Args:
        log_dir: str or path. A folder of the run; one folder above several
            runs compares them, `tensorboard --logdir runs`.
        held_out: a `keras_bond.callbacks.HeldOut` that stands before it in
            `callbacks`, or `None`.

    Raises:
        TypeError: if `held_out` is not a `HeldOut`, or the model is not a
            `keras_bond` trainer.
        ImportError: without TensorBoard, or without matplotlib, which draws the
            picture of `held_out` (extra `tensorboard`).

    Example:

    ```python
    report = keras_bond.callbacks.HeldOut(held_out, path="runs/first")
    board = keras_bond.callbacks.TensorBoard("runs/first", report)
    bond.fit(prompts, epochs=10, callbacks=[report, board])
    ```
    """

    def __init__(self, log_dir, held_out=None):
        super().__init__()
        needed = ["tensorboard"]
        if held_out is not None:
            needed.append("matplotlib")
        check_installed("`TensorBoard`", "tensorboard", needed)
        if held_out is not None and not isinstance(held_out, HeldOut):
            raise TypeError(
                "`held_out` must be a `keras_bond.callbacks.HeldOut`, the one "
                "in `callbacks`, or None. "
                f"Received: held_out={shown(held_out)}"
            )
        self.log_dir = pathlib.Path(log_dir).expanduser()
        self.held_out = held_out
        self._writers = {}
        self._shown_step = -1

    def on_train_begin(self, logs=None):
        check_trainer(self, self.model)
        self._is_starting = True

    def on_epoch_begin(self, epoch, logs=None):
        # Other callbacks may load the weights of a run in `on_train_begin`.
        if self._is_starting and backend.devices.process_index() == 0:
            self._start(self.model.num_updates())
        self._is_starting = False

    def on_epoch_end(self, epoch, logs=None):
        if not self._writers:
            return
        step, groups = self.model.num_updates(), {"": {}, "validation": {}}
        for name, value in (logs or {}).items():
            is_train = not name.startswith("val_")
            group = groups["" if is_train else "validation"]
            group[name.removeprefix("val_")] = float(value)
        for folder, values in groups.items():
            for name, value in values.items():
                self._write(step, folder, tag=name, simple_value=value)
        self._show(step)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _start(self, step):
        if step == 0:
            for path in self.log_dir.rglob(f"events.out.tfevents.*{SUFFIX}"):
                path.unlink()
        self._shown_step = step if step > 0 else -1
        from tensorboard.compat.proto import event_pb2

        # TensorBoard leaves out what a killed run has written after this step.
        for folder in ("", "validation") if step > 0 else ():
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(folder, step + 1, session_log=start)
        self._text(step, "settings", _table(settings(self.model, self.params)))
        self._show(step)

    def _show(self, step):
        """Writes what `held_out` has measured since the last time."""
        if self.held_out is None or not self.held_out.points:
            return
        point, records = self.held_out.points[-1], self.held_out.records
        if point["step"] <= self._shown_step:
            return
        self._shown_step = point["step"]
        if step == 0:
            # Later ones are logged.
            for name in ("reward", "win_rate", "kl", "effective_n"):
                if name in point:
                    tag = f"held_out/{name}"
                    self._write(step, tag=tag, simple_value=point[name])
        if records:
            text = completions.to_markdown(records)
            self._text(point["step"], "completions", text)
        if self.held_out.frontier is not None:
            from tensorboard.compat.proto import summary_pb2

            points = [p for p in self.held_out.points if "kl" in p]
            figure = plots.plot_best_of_n(self.held_out.frontier, points)
            width, height = (int(80 * x) for x in figure.get_size_inches())
            image = summary_pb2.Summary.Image(
                encoded_image_string=plots.to_png(figure),
                width=width,
                height=height,
                colorspace=3,
            )
            self._write(point["step"], tag="best_of_n", image=image)

    def _text(self, step, name, text):
        from tensorboard.compat.proto import tensor_pb2
        from tensorboard.compat.proto import types_pb2
        from tensorboard.plugins.text import metadata

        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, string_val=[text.encode()]
        )
        described = metadata.create_summary_metadata(name, "")
        self._write(step, tag=name, tensor=tensor, metadata=described)

    def _write(self, step, folder="", **value):
        from tensorboard.compat.proto import summary_pb2

        summary = summary_pb2.Summary()
        summary.value.add(**value)
        self._add(folder, step, summary=summary)

    def _add(self, folder, step, **content):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer import event_file_writer

        if folder not in self._writers:
            self._writers[folder] = event_file_writer.EventFileWriter(
                str(self.log_dir / folder), filename_suffix=SUFFIX
            )
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._writers[folder].add_event(event)


def settings(model, params):
    """The settings of a run that fit in a line each.

    Args:
        model: a trainer of `keras_bond`.
        params: dict, what Keras tells callbacks of `fit`.

    Returns:
        dict of names and values.
    """
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    config = keras.tree.flatten_with_path(optimizer.get_config())
    return {
        "trainer": type(model).__name__,
        "policy": type(model.policy).__name__,
        "trained values": sum(
            math.prod(v.shape) for v in model.policy.trainable_variables
        ),
        "backend": backend.name,
        "Keras": keras.__version__,
        **params,
        **_plain(model.get_config()),
        **_plain(model.get_compile_config()),
        "optimizer": type(optimizer).__name__,
        **{
            "optimizer " + " ".join(map(str, path)): value
            for path, value in config
            if value is not None and path != ("name",)
        },
    }


def _plain(config):
    """Entries of a config that are numbers, words or lists of them."""
    plain = (bool, int, float, str)
    return {
        name: value
        for name, value in config.items()
        if isinstance(value, plain)
        or (
            isinstance(value, list)
            and value
            and all(isinstance(x, plain) for x in value)
        )
    }


def _table(values):
    """A table in Markdown."""
    lines = [f"| {name} | `{value}` |" for name, value in values.items()]
    return "\n".join(["| setting | value |", "|---|---|", *lines])
