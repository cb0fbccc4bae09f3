# SPDX-License-Identifier: Apache-2.0
"""Files: bounded JSON, hashes, and outputs that appear when complete.

JSON from outside is bounded in size, depth and digits: Python's own parser
overflows its stack on deep nesting, and turning digits into an int takes
quadratic time.
"""

import codecs
import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import typing

from common import errors

MAX_DEPTH = 32
MAX_DIGITS = 20
MAX_JSON_BYTES = 16 << 20
# The suffix of an output until it is complete.
INCOMPLETE = ".incomplete"
# {pattern of a compressed file's first bytes: what decompresses it}
_MAGIC = {
    rb"\x1f\x8b": "gunzip",
    rb"BZh[1-9]1AY&SY": "bunzip2",
    rb"\xfd7zXZ\x00": "unxz",
    rb"PK\x03\x04": "unzip",
    rb"\x28\xb5\x2f\xfd": "unzstd",
}


@contextlib.contextmanager
def named_errors(path: str) -> typing.Iterator[None]:
    """An OSError without a file name, as one of a read, gets `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


@contextlib.contextmanager
def opened(path: str, **options: typing.Any) -> typing.Iterator[typing.Any]:
    """A stream to read whose errors name the file; by default of bytes."""
    with named_errors(path), open(path, **(options or {"mode": "rb"})) as file:
        yield file


def check_regular(
    path: str, fix: str = "replace it with a copy of the file"
) -> None:
    """Rejects a directory, and a pipe, which would be waited for.

    Raises:
      errors.UserError: names what it is, and the fix.
      OSError: it does not exist, or is a loop of symbolic links.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise errors.UserError(f"{path}: is {kind}; {fix}")


def is_file(path: str) -> bool:
    """Whether a file exists; errors are those of check_regular."""
    try:
        check_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def matching(directory: str, pattern: str) -> typing.List[str]:
    """The paths in a directory whose names match a pattern, sorted."""
    return sorted(glob.glob(os.path.join(glob.escape(directory), pattern)))


def beside(path: str, name: str) -> str:
    """The file of that name in the directory of another, "" without it."""
    file = os.path.join(os.path.dirname(path), name)
    return file if is_file(file) else ""


# --- JSON and hashes --------------------------------------------------------


def loads(text: str, **options: typing.Any) -> typing.Any:
    """Parses JSON; options are those of json.loads.

    Raises:
      ValueError: not JSON, nested too deeply, or an integer with too many
        digits.
    """
    try:
        value = json.loads(text, parse_int=_bounded_int, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    return value


def unique(
    pairs: typing.List[typing.Tuple[str, typing.Any]],
) -> typing.Dict[str, typing.Any]:
    """An `object_pairs_hook` that rejects an object with a repeated key."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is repeated")
    return values


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _check_depth(value: typing.Any) -> None:
    """Rejects nesting that later recursive steps could not handle."""
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
            f"it is nested too deeply: more than {MAX_DEPTH} levels"
        )


def read_bytes(path: str, limit: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file, or of a pipe, of at most `limit` bytes.

    Raises:
      errors.UserError: the file is larger.
      OSError: it cannot be read.
    """
    data = bytearray()
    with opened(path) as stream:
        # In blocks: read(limit) would allocate the limit.
        for block in iter(lambda: stream.read(1 << 20), b""):
            data += block
            if len(data) > limit:
                raise errors.UserError(
                    f"{path}: larger than {limit} bytes, the limit for such "
                    "a file; check that it is the right one"
                )
    return bytes(data)


def decompressor(start: bytes) -> typing.Optional[str]:
    """The program that decompresses a file that starts so; None for others."""
    return next(
        (name for magic, name in _MAGIC.items() if re.match(magic, start)), None
    )


def not_utf8(
    path: str, error: UnicodeDecodeError, problem: str
) -> errors.UserError:
    """The error of a text file that is not UTF-8, perhaps since compressed.

    Args:
      path: of the file.
      error: of decoding its first bytes, or later ones.
      problem: "problem; fix", where the bytes are not those of such a file.
    """
    program = decompressor(error.object)
    if program:
        problem = f"compressed; decompress it with {program}"
    return errors.UserError(f"{path}: {problem}")


def parse_json(
    data: bytes,
    path: str,
    kind: str = "JSON",
    kinds: typing.Tuple[type, ...] = (dict,),
) -> typing.Any:
    """The object of a JSON text in UTF-8 whose keys are all different.

    Args:
      data: the text, with or without a byte order mark.
      path: its file, for messages.
      kind: what the file should be, for messages: "a SQuAD file".
      kinds: types that the value may have.

    Raises:
      errors.UserError: not UTF-8, not JSON within the limits, not an object,
        or a repeated key.
    """
    try:
        values = loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise not_utf8(
            path,
            error,
            f"not UTF-8 at byte {error.start}; expected {kind} in UTF-8",
        ) from error
    except ValueError as error:
        raise errors.UserError(
            f"{path}: not JSON: {error}; check that it is {kind} and complete"
        ) from error
    if not isinstance(values, kinds):
        raise errors.UserError(
            f"{path}: a JSON {type(values).__name__}, expected an object; "
            f"check that it is {kind}"
        )
    return values


def read_json(
    path: str,
    kind: str = "JSON",
    limit: int = MAX_JSON_BYTES,
    kinds: typing.Tuple[type, ...] = (dict,),
) -> typing.Any:
    """The object of a JSON file; arguments and errors as parse_json's."""
    return parse_json(read_bytes(path, limit), path, kind, kinds)


def read_json_lines(
    path: str,
) -> typing.Iterator[typing.Tuple[int, typing.Dict[str, typing.Any]]]:
    """Yields (line, object) of a file with a JSON object per line.

    Empty lines are skipped.

    Raises:
      errors.UserError: a line is not UTF-8, or not a JSON object.
    """
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip(codecs.BOM_UTF8).strip():
                where = f"{path}, line {number}"
                yield number, parse_json(line, where, "an object per line")


def sha256(path: str) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with opened(path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(value: typing.Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_exactly(path: str, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`; a UserError if the file is shorter."""
    with opened(path) as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise errors.UserError(
            f"{path}: truncated: expected {size} bytes at {offset}, got "
            f"{len(data)}; copy the file again"
        )
    return data


# --- Outputs ----------------------------------------------------------------


def sync_directory(path: str) -> None:
    """Makes a rename in the directory of `path` survive a power cut."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_device(path):
    """Whether a path is written to as it is: a device, a pipe, /dev/stdout."""
    return os.path.exists(path) and (
        not os.path.isfile(path)
        or os.path.dirname(os.path.abspath(path)) == "/dev"
    )


@contextlib.contextmanager
def new_file(path: str) -> typing.Iterator[typing.BinaryIO]:
    """A binary stream whose file gets its name when it is complete.

        with new_file(path) as stream:
            stream.write(data)

    An exception leaves no new file and keeps an old one. An OSError without a
    file name gets `path`. A device or pipe is written to as it is.
    """
    if _is_device(path):
        with named_errors(path), open(path, "wb") as stream:
            yield stream
        return
    temporary = path + INCOMPLETE
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_directory(path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path
        raise


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file that appears when it is complete."""
    with new_file(path) as stream:
        stream.write(data)


def write_text(path: str, text: str) -> None:
    """Writes UTF-8 text to a file that appears when it is complete."""
    write_bytes(path, text.encode("utf-8"))


def json_bytes(value: typing.Any) -> bytes:
    """Indented JSON in UTF-8; escaped where it has half a surrogate pair."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        return (text + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value, indent=2) + "\n").encode()


def write_json(path: str, value: typing.Any) -> None:
    """Writes indented JSON to a file that appears when it is complete."""
    write_bytes(path, json_bytes(value))


@contextlib.contextmanager
def scratch_directory(target: str) -> typing.Iterator[str]:
    """A new directory beside `target`, removed when the block ends.

    The block renames what it made to `target`, which so appears complete.
    """
    directory = target + INCOMPLETE
    descriptor = _lock(directory, target)
    try:
        for entry in os.scandir(directory):  # left by a killed process
            is_directory = entry.is_dir(follow_symlinks=False)
            (shutil.rmtree if is_directory else os.remove)(entry.path)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(directory, target):
    """A descriptor of the directory, which is made, that holds its lock."""
    os.makedirs(os.path.dirname(os.path.abspath(directory)), exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        # Another process may remove it until it is locked.
        with contextlib.suppress(FileNotFoundError):
            # What a link names is not ours to empty.
            descriptor = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise errors.UserError(
                    f"{target}: another process is writing it; wait until "
                    "that ends, or choose another place"
                ) from None
            except OSError:  # a file system without locks
                pass
            if os.path.samestat(os.fstat(descriptor), os.lstat(directory)):
                return descriptor
            os.close(descriptor)


def publish(new: typing.Mapping[str, str]) -> None:
    """Renames files and directories, {path: its place}, over old ones.

    Interrupted or failing, it puts back what it has replaced.
    """
    begun = []
    try:
        for path, place in new.items():
            old = path + ".replaced"
            begun.append((path, place, old))
            if os.path.lexists(place):
                os.replace(place, old)
            os.replace(path, place)
    except BaseException:
        for path, place, old in begun:
            if os.path.lexists(place) and not os.path.lexists(path):
                os.replace(place, path)
            if os.path.lexists(old):
                os.replace(old, place)
        raise


class NewFiles:
    """Files that get their names together, when all are complete.

        with NewFiles([data_file, index_file], overwrite=False) as output:
            with output.open(data_file) as stream:
                ...

    Readers need the file of the last path: it is renamed last, and an old one
    is removed first, so that no reader sees old and new files. Missing
    directories are made, and removed again after an error. A device or pipe is
    written to as it is.

    Raises:
      errors.UserError: a path exists and `overwrite` is False.
      OSError: names the file, also for a full disk.
    """

    def __init__(self, paths: typing.Iterable[str], *, overwrite: bool):
        self._paths = list(paths)
        self._made: typing.List[str] = []
        for path in self._paths:
            if os.path.lexists(path) and not overwrite:
                raise errors.UserError(
                    f"{path}: already exists; pass --overwrite to replace it "
                    "or choose another --output"
                )
            if os.path.isdir(path):
                raise errors.UserError(
                    f"{path}: is a directory; choose another --output"
                )

    def __enter__(self) -> "NewFiles":
        for directory in self._directories():
            self._make(directory)
        return self

    def _directories(self) -> typing.Set[str]:
        return {os.path.dirname(os.path.abspath(p)) for p in self._paths}

    def _make(self, directory: str) -> None:
        if os.path.isdir(directory):
            return
        self._make(os.path.dirname(directory))
        os.mkdir(directory)
        self._made.append(directory)

    def open(self, path: str) -> typing.BinaryIO:
        """A binary stream for one of the paths."""
        return open(path if _is_device(path) else path + INCOMPLETE, "wb")

    def write(self, path: str, data: bytes) -> None:
        """Writes the entire content of one of the paths."""
        with self.open(path) as stream:
            stream.write(data)

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._publish()
            elif isinstance(error, OSError) and error.filename is None:
                error.filename = self._paths[-1]
        finally:
            self._clean_up()

    def _publish(self) -> None:
        paths = [path for path in self._paths if not _is_device(path)]
        for path in paths:
            with open(path + INCOMPLETE, "rb+") as stream:
                os.fsync(stream.fileno())
        if os.path.lexists(self._paths[-1]) and self._paths[-1] in paths:
            os.remove(self._paths[-1])
        for path in paths:
            os.replace(path + INCOMPLETE, path)
        for directory in self._directories():
            sync_directory(os.path.join(directory, ""))

    def _clean_up(self) -> None:
        for path in self._paths:
            if os.path.lexists(path + INCOMPLETE):
                os.remove(path + INCOMPLETE)
        for directory in reversed(self._made):
            if not os.listdir(directory):
                os.rmdir(directory)
