# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: saving, checking, the list of those to resume from.

TensorFlow's Saver writes their files, the index last. A checkpoint exists once
its index does, and is whole if `damage` finds nothing.

The file `checkpoint` in a run's directory lists them, and TensorFlow restores
the newest one in the list. This module removes damaged checkpoints from it.
"""

import fcntl
import functools
import glob
import os
import shutil
import time
import typing

import tensorflow.compat.v1 as tf

from common import errors, files
from weights import tf_checkpoint

# The folder of the checkpoint with the best scores.
BEST = "best"
_STATE_FILE = "checkpoint"
# The variable that checkpoints of the first version lack.
_RECORDS_SEEN = "records_seen"
# Left by a killed process; the names are TensorFlow's.
_UNFINISHED = ("model.ckpt-*_temp*", "graph.pbtxt.tmp*", "checkpoint.tmp*")


class Saver(tf.train.Saver):
    """A Saver that does not overwrite the checkpoint that it restored.

    TensorFlow saves at the start of each session too, to the same files that
    the session was restored from; killed then, it would destroy them.
    Checkpoints come without the graph (.meta), which nothing here reads: it
    takes 4 seconds on TensorFlow 1.15 with 24 layers.
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
        self._without_records: typing.Optional[tf.train.Saver] = None
        self._records: typing.List[tf.Variable] = []

    def build(self):
        super().build()
        variables = tf.global_variables()
        self._records = [v for v in variables if v.op.name == _RECORDS_SEEN]
        self._without_records = tf.train.Saver(
            [v for v in variables if v.op.name != _RECORDS_SEEN]
        )

    def restore(self, sess, save_path):
        reader = tf.train.load_checkpoint(save_path)
        if self._records and not reader.has_tensor(_RECORDS_SEEN):
            self._without_records.restore(sess, save_path)
            sess.run([variable.initializer for variable in self._records])
        else:
            super().restore(sess, save_path)
        self._restored = os.path.abspath(save_path)

    def save(self, sess, save_path, global_step=None, **_):
        path = f"{save_path}-{global_step}"
        if os.path.abspath(path) == self._restored:
            return path
        try:
            return super().save(
                sess, save_path, global_step, write_meta_graph=False
            )
        except tf.errors.OutOfRangeError as error:
            # "File too large": a session would take it for the end of the data.
            raise tf.errors.ResourceExhaustedError(
                error.node_def, error.op, error.message
            ) from error


class SaverHook(tf.train.CheckpointSaverHook):
    """Saves checkpoints while training, and the graph in an event file.

    TensorFlow's hook also writes graph.pbtxt and a MetaGraphDef when a session
    starts: 10 of the 60 seconds of a run of three steps with 24 layers.
    """

    def after_create_session(self, session, coord):
        step = session.run(self._global_step_tensor)
        self._summary_writer.add_graph(session.graph)
        self._save(session, step)
        self._timer.update_last_triggered_step(step)


class SaveTimer(tf.train.CheckpointSaverListener):
    """Seconds spent on checkpoints, and on evaluations, while training."""

    def __init__(self):
        self.seconds = 0.0
        self._start = None

    def before_save(self, session, global_step_value):
        self._start = time.time()

    def after_save(self, session, global_step_value):
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
    """Prefix of the newest checkpoint, whole or not, or None."""
    return (listed(directory) or [None])[-1]


def newest_whole(directory: str) -> typing.Optional[str]:
    """Prefix of the newest checkpoint without damage, None without any.

    Raises:
      errors.UserError: all checkpoints are damaged.
    """
    return _choose(directory)[0]


def newest_readable(directory: str) -> typing.Optional[str]:
    """`newest_whole`, with a warning where a newer one is damaged."""
    path, problems = _choose(directory)
    if path and problems:
        tf.logging.warning("%s; using %s", problems[0], path)
    return path


def only_or_newest(directory: str) -> typing.Optional[str]:
    """`newest_readable`, else the only checkpoint, such as a converted one."""
    prefixes = tf_checkpoint.in_directory(directory)
    only = prefixes[0] if len(prefixes) == 1 else None
    return newest_readable(directory) or only


def batches_seen(checkpoint: typing.Optional[str]) -> int:
    """Batches consumed when a checkpoint was written; 0 without one."""
    seen = _counter(checkpoint, "batches_seen")
    return global_step(checkpoint) if seen is None else seen


def records_seen(checkpoint: typing.Optional[str], global_batch: int) -> int:
    """Records consumed when a checkpoint was written; 0 without one.

    One of the first version did not count them: batches x global_batch.
    """
    seen = _counter(checkpoint, _RECORDS_SEEN)
    return batches_seen(checkpoint) * global_batch if seen is None else seen


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
    """Prefixes in the order they were written, oldest first.

    Those that the list names and the directory contains: the list of a copied
    directory may name the files of the original. Without one of them all
    checkpoints in the directory.
    """
    return [
        path
        for path in _named(directory)
        if os.path.exists(tf_checkpoint.index_file(path))
    ] or _on_disk(directory)


def _named(directory):
    """Prefixes in the directory that the list names, oldest first."""
    files.is_file(os.path.join(directory, _STATE_FILE))  # no pipe
    try:
        state = tf.train.get_checkpoint_state(directory)
    except ValueError:  # the file is not UTF-8
        state = None
    if state is None:
        return []
    last = state.model_checkpoint_path
    paths = list(state.all_model_checkpoint_paths)
    # If the user edited the file to go back, ignore newer checkpoints.
    paths = paths[: paths.index(last)] if last in paths else paths
    return [
        os.path.join(directory, os.path.basename(path))
        for path in paths + [last]
    ]


def damage(prefix: str) -> str:
    """The problem with a checkpoint's files, "" when there is none.

    Checks the index, and the checksums of all variables.
    """
    try:
        tensors = tf_checkpoint.load(prefix)
        paths = glob.glob(glob.escape(prefix) + ".*")
        states = [os.stat(path) for path in sorted(paths)]
    except OSError as error:
        return f"{error.filename or prefix}: {error.strerror or error}"
    except errors.UserError as error:
        return str(error)
    return _wrong_checksum(
        prefix,
        tuple(tensors),
        tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in states),
    )


@functools.lru_cache(maxsize=64)
def _wrong_checksum(prefix, names, states):
    """The first variable whose checksum is wrong; TensorFlow reads fast.

    Files are read again when their states change.
    """
    reader = tf.train.load_checkpoint(prefix)
    for name in names:
        try:
            reader.get_tensor(name)
        except (tf.errors.OpError, ValueError):
            return (
                f"{prefix}: {name!r} is damaged, its checksum does not match; "
                "use another checkpoint or copy it again"
            )
    return ""


def _choose(directory):
    """(newest checkpoint without damage, problems with newer ones)."""
    paths = listed(directory)
    unlisted = [path for path in _on_disk(directory) if path not in paths]
    problems = []
    for path in paths[::-1] + unlisted[::-1]:
        problem = damage(path)
        if not problem:
            return path, problems
        problems.append(problem)
    if problems:
        raise errors.UserError(
            f"{directory}: all checkpoints are damaged; newest: {problems[0]}; "
            "copy one back, or move them away to start again"
        )
    return None, []


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
        for name in _UNFINISHED:
            for path in files.matching(directory, name):
                if os.path.isdir(path):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    os.remove(path)
    path, problems = _choose(directory)
    if path is None or path == _restored_by_tensorflow(directory):
        return path
    paths = listed(directory)
    tf.logging.warning(
        "going back to %s: %s",
        path,
        "; ".join(problems)
        or f"{os.path.join(directory, _STATE_FILE)} is missing or unreadable, "
        "or names files that are not in the directory",
    )
    keep(directory, paths[: paths.index(path) + 1] if path in paths else [path])
    return path


def _restored_by_tensorflow(directory):
    """Prefix of the checkpoint that an Estimator restores, or None."""
    try:
        path = tf.train.latest_checkpoint(directory)
    except (ValueError, tf.errors.OpError):
        return None  # the list is not UTF-8, or its directory is gone
    is_inside = path and os.path.realpath(
        os.path.dirname(path)
    ) == os.path.realpath(directory)
    return (
        os.path.join(directory, os.path.basename(path)) if is_inside else None
    )


_Result = typing.TypeVar("_Result")


def restored(directory: str, restore: typing.Callable[[], _Result]) -> _Result:
    """restore(), again with the next checkpoint if its own was deleted.

    A run that trains beside an evaluation deletes old checkpoints.

    Args:
      directory: of the run.
      restore: reads the newest checkpoint of the directory.
    """
    while True:
        path = newest(directory)
        try:
            return restore()
        except (tf.errors.OpError, ValueError):
            problem = path and damage(path)
            if not problem:
                raise
        tf.logging.warning("%s; taking the next checkpoint", problem)
        repair(directory, removes=False)


def _on_disk(directory):
    """Prefixes of a trainer's checkpoints that have an index, by step."""
    return [
        prefix
        for prefix in tf_checkpoint.in_directory(directory)
        if os.path.basename(prefix).startswith("model.ckpt-")
        and tf_checkpoint.step_of(prefix) >= 0
    ]


def best(directory: str) -> str:
    """Prefix of the checkpoint that --keep_best kept.

    Raises:
      errors.UserError: there is none.
    """
    path = newest(os.path.join(directory, BEST))
    if not path:
        raise errors.UserError(
            f"--evaluate_checkpoints=best: {os.path.join(directory, BEST)} has "
            "no checkpoint; train with --evaluate_every_steps and --keep_best"
        )
    return path


def remove_others(directory: str, prefix: str) -> None:
    """Removes all checkpoints of a directory but one, and lists that one."""
    keep(directory, [prefix])
    for path in _on_disk(directory):
        if tf_checkpoint.step_of(path) != tf_checkpoint.step_of(prefix):
            for name in glob.glob(glob.escape(path) + ".*"):
                os.remove(name)


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
