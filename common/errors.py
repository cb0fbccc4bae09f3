# SPDX-License-Identifier: Apache-2.0
"""The exception for mistakes that a user can fix.

Scripts turn it into a single line on standard error and exit code 1; any other
exception is a bug of this project and keeps its traceback.
"""

import errno
import importlib
import types

_MAX_CHARACTERS = 1500
# {number of an OSError: what a user does}
_FIXES = {
    errno.EACCES: "make it usable or choose another path",
    errno.EDQUOT: "free some space",
    errno.EEXIST: "choose another path",
    errno.EFBIG: "raise the limit (ulimit -f)",
    errno.EISDIR: "name a file",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space",
    errno.ENOTDIR: "choose another path",
    errno.EROFS: "make it usable or choose another path",
}


class UserError(ValueError):
    """A bad file, flag or setting.

    Its text is `what: problem; fix` and names the flag or the file.
    """

    def __str__(self) -> str:
        return shortened(super().__str__())


def describe_os_error(error: OSError) -> str:
    """`cannot use 'a.txt': Permission denied; choose another path`."""
    text = error.strerror or str(error)
    if error.filename is not None:
        text = f"cannot use {error.filename!r}: {text}"
    fix = _FIXES.get(error.errno or 0)
    return f"{text}; {fix}" if fix else text


def missing_package(user: str, package: str, extra: str) -> UserError:
    """The error for an optional package that is not installed.

    Args:
      user: the script or flag that needs it.
      package: its name.
      extra: the value of `scripts/setup.sh --extras` that installs it.
    """
    return UserError(
        f"{user} needs {package}, which is not installed; run bash "
        f"scripts/setup.sh --extras={extra}"
    )


def import_package(
    name: str, user: str, extra: str, package: str = ""
) -> types.ModuleType:
    """An optional package, or a module of one.

    Args:
      name: of the module.
      user, extra: as of `missing_package`.
      package: pip's name for it, where it is another one.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = package or name.partition(".")[0]
        raise missing_package(user, package, extra) from error


def shortened(text: str) -> str:
    """A message without its middle if it is long, as content of a file is.

    The problem is at the start of a message, the fix at its end.
    """
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} [...] {text[-half:]}"
