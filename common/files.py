# SPDX-License-Identifier: Apache-2.0
"""JSON from files that nobody vouches for: bounded in depth and digits.

Python's own parser overflows its stack on deep nesting, and turning digits
into an int takes quadratic time. How large a file may be its reader says.
"""

import json
import os

from common import errors

MAX_DEPTH = 32
MAX_DIGITS = 20
MAX_JSON_BYTES = 16 << 20


def loads(text, **options):
    """The value of a JSON text; arguments as of json.loads.

    Raises:
      ValueError: no JSON, nested too deeply, or a whole number with more
        digits than any that is meant.
    """
    try:
        value = json.loads(text, parse_int=_bounded_int, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    return value


def unique(pairs):
    """As `object_pairs_hook`: refuses an object that has a key twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands in it twice")
    return values


def _bounded_int(digits):
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check_depth(value):
    """Refuses what messages and later steps could not walk through."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (
                parent.values() if isinstance(parent, dict) else parent
            )
        ]
    if level:
        raise ValueError(
            f"it is nested too deeply, more than {MAX_DEPTH} values in each "
            "other"
        )


def read_exactly(path, offset, size):
    """Bytes of a file, a UserError where it ends too early."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise errors.UserError(
            f"{path} is cut off: {size} bytes at {offset} were expected, "
            f"{len(data)} are there; copy the file again"
        )
    return data


def parse_json(data, path):
    """The object of a JSON text whose keys are all different.

    Raises:
      errors.UserError: no JSON, no object, a key twice, or strict_json's
        limits.
    """
    try:
        values = loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except ValueError as error:
        raise errors.UserError(
            f"{path} is not the JSON that was expected: {error}; copy the file "
            "again"
        ) from error
    if not isinstance(values, dict):
        raise errors.UserError(
            f"{path} holds a JSON {type(values).__name__}; expected an object"
        )
    return values


def read_small(path, limit=MAX_JSON_BYTES):
    """A whole file of at most `limit` bytes."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise errors.UserError(
                f"{path} has {size} bytes, the limit for such a file is "
                f"{limit}; is it the right one?"
            )
        return stream.read(size)


def read_json(path):
    """The object of a JSON file."""
    return parse_json(read_small(path), path)


def sync_directory(path):
    """Makes a rename in the directory of `path` survive a power cut."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path, data):
    """Writes bytes to a file that has its name only when it is complete."""
    temporary = path + ".incomplete"
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_directory(path)
    except OSError as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if error.filename is None:
            error.filename = path
        raise


def write_json(path, value):
    """Writes indented JSON; the file appears when it is complete."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path, text):
    """Writes UTF-8 text; the file appears when it is complete."""
    write_atomically(path, text.encode("utf-8"))


class NewFiles:
    """Files that get their names together, once all of them are whole.

        with NewFiles([data_file, index_file], overwrite=False) as files:
            with files.open(data_file) as stream:
                ...

    Until then each is called path + ".incomplete". The last path is the one
    without which the others are not used: it is renamed last, and an old one
    is removed first, so that no moment shows a mixture.

    Raises:
      errors.UserError: a path exists and is not to be overwritten.
      OSError: names the file, also for a full disk.
    """

    def __init__(self, paths, *, overwrite):
        self._paths = list(paths)
        self._made = []
        for path in self._paths:
            if os.path.lexists(path) and not overwrite:
                raise errors.UserError(
                    f"{path} exists already; pass --overwrite to replace it or "
                    "choose another --output"
                )
            if os.path.isdir(path):
                raise errors.UserError(
                    f"{path} is a directory; choose another --output"
                )

    def __enter__(self):
        for directory in {
            os.path.dirname(os.path.abspath(path)) for path in self._paths
        }:
            self._make(directory)
        return self

    def _make(self, directory):
        if os.path.isdir(directory):
            return
        self._make(os.path.dirname(directory))
        os.mkdir(directory)
        self._made.append(directory)

    def open(self, path):
        """A binary stream for one of the paths."""
        if path not in self._paths:
            raise KeyError(path)
        return open(path + ".incomplete", "wb")

    def write(self, path, data):
        """All bytes of one of the paths."""
        with self.open(path) as stream:
            stream.write(data)

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self._publish()
            elif isinstance(error, OSError) and error.filename is None:
                error.filename = self._paths[-1]
        finally:
            self._clean_up()

    def _publish(self):
        for path in self._paths:
            with open(path + ".incomplete", "rb+") as stream:
                os.fsync(stream.fileno())
        if os.path.lexists(self._paths[-1]):
            os.remove(self._paths[-1])
        for path in self._paths:
            os.replace(path + ".incomplete", path)
        for directory in {
            os.path.dirname(os.path.abspath(path)) for path in self._paths
        }:
            descriptor = os.open(directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def _clean_up(self):
        for path in self._paths:
            if os.path.lexists(path + ".incomplete"):
                os.remove(path + ".incomplete")
        for directory in reversed(self._made):
            if not os.listdir(directory):
                os.rmdir(directory)
