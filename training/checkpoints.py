# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: saving, checking, the list of those to resume from.

The file `checkpoint` in a run's directory lists them, and TensorFlow restores
the newest one in the list. This module removes damaged checkpoints from it.
"""

import fcntl
import glob
import os
import re
import shutil
import time
import typing

import tensorflow.compat.v1 as tf

from common import errors, files
from weights import tf_checkpoint

_STATE_FILE = "checkpoint"
# Left by a killed process; the name is TensorFlow's.
_UNFINISHED = "model.ckpt-*_temp*"


class Saver(tf.train.Saver):
    """A Saver that does not overwrite the checkpoint that it restored.

    TensorFlow saves at the start of each session too, to the same files that
    the session was restored from; killed then, it would destroy them.
    """

    def __init__(self, keep: int):
        """
        Args:
          keep: checkpoints to keep, the oldest are deleted first.
        """
        super().__init__(
            sharded=True,
            max_to_keep=keep,
            defer_build=True,
            save_relative_paths=True,
        )
        self._restored = None

    def restore(self, sess, save_path):
        super().restore(sess, save_path)
        self._restored = os.path.abspath(save_path)

    def save(self, sess, save_path, global_step=None, **options):
        path = f"{save_path}-{global_step}"
        if os.path.abspath(path) == self._restored:
            return path
        return super().save(sess, save_path, global_step, **options)


class SaveTimer(tf.train.CheckpointSaverListener):
    """Seconds spent on saving checkpoints."""

    def __init__(self):
        self.seconds = 0.0
        self._start = None

    def before_save(self, session, global_step_value):
        del session, global_step_value
        self._start = time.time()

    def after_save(self, session, global_step_value):
        del session, global_step_value
        self.seconds += time.time() - self._start


# {directory: descriptor} of those that this process trains in.
_CLAIMED = {}
# The last processes of a killed run may keep the lock for so long.
_CLAIM_SECONDS = 3


def claim(directory: str) -> None:
    """Locks a directory against other processes that train in it.

    The lock ends with the process. File systems without locks are not locked.

    Raises:
      errors.UserError: another process trains there.
    """
    path = os.path.realpath(directory)
    if path in _CLAIMED:
        return
    descriptor = os.open(path, os.O_RDONLY)
    deadline = time.monotonic() + _CLAIM_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise errors.UserError(
                    f"another run trains in {directory}; wait for its end, or "
                    "use another --output_dir"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            tf.logging.info(
                "%s cannot be locked: %s", directory, error.strerror
            )
            break
    _CLAIMED[path] = descriptor


def newest(directory: str) -> typing.Optional[str]:
    """Prefix of the newest checkpoint, or None."""
    paths = listed(directory)
    if paths and os.path.exists(tf_checkpoint.index_file(paths[-1])):
        return paths[-1]
    return None


def batches_seen(checkpoint: typing.Optional[str]) -> int:
    """Batches consumed when a checkpoint was written; 0 without one."""
    seen = _counter(checkpoint, "batches_seen")
    return global_step(checkpoint) if seen is None else seen


def global_step(checkpoint: typing.Optional[str]) -> int:
    """Updates made when a checkpoint was written; 0 for bare weights."""
    return _counter(checkpoint, "global_step") or 0


def _counter(checkpoint, name):
    """The value of a scalar variable, None where there is none."""
    if not checkpoint:
        return None
    reader = tf.train.load_checkpoint(checkpoint)
    return int(reader.get_tensor(name)) if reader.has_tensor(name) else None


def listed(directory: str) -> typing.List[str]:
    """Prefixes in the order they were written, oldest first."""
    try:
        state = tf.train.get_checkpoint_state(directory)
    except ValueError:  # the file is not UTF-8
        state = None
    if state is None:
        return []
    paths = list(state.all_model_checkpoint_paths)
    if state.model_checkpoint_path not in paths:
        paths.append(state.model_checkpoint_path)
    # If the user edited the file to go back, ignore newer checkpoints.
    return paths[: paths.index(state.model_checkpoint_path) + 1]


def damage(prefix: str) -> str:
    """The problem with a checkpoint's files, "" when there is none.

    Checks sizes against the index, and the checksums of the index, of the
    counters and of the last variable: a truncated file lacks its end, and
    reading gigabytes at each start would be slow.
    """
    try:
        tensors = tf_checkpoint.load(prefix)
        for name in _samples(tensors):
            tensors[name].read()
    except OSError as error:
        return f"{error.filename or prefix}: {error.strerror or error}"
    except errors.UserError as error:
        return str(error)
    return ""


def _samples(tensors):
    names = [
        name for name, tensor in tensors.items() if tensor.dtype != "STRING"
    ]
    return {"global_step", "batches_seen"}.intersection(tensors).union(
        names[-1:]
    )


def repair(directory: str, removes: bool = True) -> typing.Optional[str]:
    """Makes TensorFlow resume from the newest checkpoint without damage.

    Several processes may do so at once: they all write the same list.

    Args:
      directory: of the run.
      removes: whether to remove unfinished files of a killed process.

    Returns:
      The checkpoint's prefix, None without any checkpoint.

    Raises:
      errors.UserError: all checkpoints are damaged.
    """
    if removes:
        for path in glob.glob(
            os.path.join(glob.escape(directory), _UNFINISHED)
        ):
            shutil.rmtree(path, ignore_errors=True)
    paths, problems = listed(directory), []
    if not paths:
        paths = _on_disk(directory)
        if not paths:
            return None
        problems = [
            f"{os.path.join(directory, _STATE_FILE)} is missing or unreadable"
        ]
    damaged = []
    while paths:
        problem = damage(paths[-1])
        if not problem:
            break
        damaged.append(problem)
        paths.pop()
    if not paths:
        raise errors.UserError(
            f"{directory}: all checkpoints are damaged; newest: {damaged[0]}; "
            "copy one back, or move them away to start again"
        )
    problems = damaged or problems
    if problems:
        tf.logging.warning(
            "going back to %s: %s", paths[-1], "; ".join(problems)
        )
        keep(directory, paths)
    return paths[-1]


def _on_disk(directory):
    """Prefixes that have an index, by step."""
    steps = {}
    for path in glob.glob(
        os.path.join(glob.escape(directory), "model.ckpt-*.index")
    ):
        match = re.search(r"-(\d+)\.index$", path)
        if match:
            steps[path[: -len(".index")]] = int(match.group(1))
    return sorted(steps, key=steps.get)


def keep(directory: str, paths: typing.Sequence[str]) -> None:
    """Lists these checkpoints and no others, the last one as the newest.

    Args:
      directory: of the run.
      paths: prefixes of files in the directory, oldest first.
    """
    names = [os.path.relpath(path, directory) for path in paths]
    lines = [f'model_checkpoint_path: "{names[-1]}"\n']
    lines += [f'all_model_checkpoint_paths: "{name}"\n' for name in names]
    path = os.path.join(directory, _STATE_FILE)
    # Several processes may write at once, each to another file.
    temporary = f"{path}.{os.getpid()}"
    files.write_text(temporary, "".join(lines))
    os.replace(temporary, path)
