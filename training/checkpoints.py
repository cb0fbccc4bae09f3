# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: which are whole, which to go on from.

The file `checkpoint` in a run's directory lists them; TensorFlow restores the
one it names as the newest. This module strikes damaged ones off that list,
and those of a run that diverged.
"""

import fcntl
import glob
import os
import re
import shutil
import time

import tensorflow.compat.v1 as tf

from common import errors
from weights import tf_checkpoint

_STATE_FILE = "checkpoint"
# What a killed process leaves behind: Saver's own names.
_UNFINISHED = "model.ckpt-*_temp*"


class Saver(tf.train.Saver):
    """Does not write again what was just restored.

    TensorFlow saves at the start of each session too, onto the very files the
    session was restored from; killed then, it would have destroyed them.
    """

    def __init__(self, keep):
        """
        Args:
          keep: how many checkpoints, the oldest ones go first.
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


# {directory: descriptor} of those that this process trains in.
_CLAIMED = {}
# A killed run's last processes may hold on for so long.
_CLAIM_SECONDS = 3


def claim(directory):
    """Keeps other processes from training in a directory.

    The claim ends with the process, however that ends. Where a file system
    knows no locks, there is none.

    Raises:
      errors.UserError: another process trains there.
    """
    place = os.path.realpath(directory)
    if place in _CLAIMED:
        return
    descriptor = os.open(place, os.O_RDONLY)
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
                    "give another --output_dir"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            tf.logging.info(
                "%s cannot be locked: %s", directory, error.strerror
            )
            break
    _CLAIMED[place] = descriptor


def newest(directory):
    """Prefix of the newest checkpoint, or None."""
    paths = listed(directory)
    return (
        paths[-1]
        if paths and os.path.exists(tf_checkpoint.index_file(paths[-1]))
        else None
    )


def batches_seen(checkpoint):
    """Batches consumed when a checkpoint was written; 0 without one."""
    if not checkpoint:
        return 0
    reader = tf.train.load_checkpoint(checkpoint)
    if not reader.has_tensor("batches_seen"):
        return int(reader.get_tensor("global_step"))
    return int(reader.get_tensor("batches_seen"))


def global_step(checkpoint):
    """Updates made when a checkpoint was written; 0 for bare weights."""
    if not checkpoint:
        return 0
    reader = tf.train.load_checkpoint(checkpoint)
    if not reader.has_tensor("global_step"):
        return 0
    return int(reader.get_tensor("global_step"))


def listed(directory):
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
    # Whoever edits the file to go back means what he says.
    return paths[: paths.index(state.model_checkpoint_path) + 1]


def damage(prefix):
    """What is wrong with a checkpoint's files, "" when they are whole.

    Sizes are compared with the index, checksums of the index, of the counters
    and of the last variable: a file that was cut off lacks its end, and
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
    return set(
        names[-1:]
        + [name for name in ("global_step", "batches_seen") if name in tensors]
    )


def repair(directory, removes=True):
    """Makes TensorFlow go on from the newest checkpoint that is whole.

    Several processes may do so at once: they all come to the same list.

    Args:
      directory: of the run.
      removes: whether to remove what a killed process left half written.

    Returns:
      The checkpoint's prefix, None where there is none at all.

    Raises:
      errors.UserError: there are checkpoints, and all of them are damaged.
    """
    if removes:
        for path in glob.glob(
            os.path.join(glob.escape(directory), _UNFINISHED)
        ):
            shutil.rmtree(path, ignore_errors=True)
    paths, broken = listed(directory), []
    is_known = bool(paths)
    if not is_known:
        paths = _on_disk(directory)
    while paths:
        wrong = damage(paths[-1])
        if not wrong:
            break
        broken.append(wrong)
        paths.pop()
    if not paths:
        if not broken:
            return None
        raise errors.UserError(
            f"no checkpoint in {directory} is whole; newest: {broken[0]}; copy "
            "one back, or move them away to begin anew"
        )
    if broken or not is_known:
        _tell(directory, paths, broken)
        keep(directory, paths)
    return paths[-1]


def _tell(directory, paths, broken):
    why = (
        "; ".join(broken)
        if broken
        else f"{os.path.join(directory, _STATE_FILE)} is missing or unreadable"
    )
    tf.logging.warning("going back to %s: %s", paths[-1], why)


def _on_disk(directory):
    """Prefixes that have an index, by step."""
    found = []
    for path in glob.glob(
        os.path.join(glob.escape(directory), "model.ckpt-*.index")
    ):
        step = re.search(r"-(\d+)\.index$", path)
        if step:
            found.append((int(step.group(1)), path[: -len(".index")]))
    return [path for _, path in sorted(found)]


def keep(directory, paths):
    """Lists these checkpoints and no others, the last one as the newest.

    Args:
      paths: prefixes of files in the directory, oldest first.
    """
    names = [os.path.relpath(path, directory) for path in paths]
    lines = [f'model_checkpoint_path: "{names[-1]}"\n']
    lines += [f'all_model_checkpoint_paths: "{name}"\n' for name in names]
    path = os.path.join(directory, _STATE_FILE)
    temporary = f"{path}.{os.getpid()}.incomplete"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write("".join(lines))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
