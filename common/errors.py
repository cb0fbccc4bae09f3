# SPDX-License-Identifier: Apache-2.0
"""The exception for mistakes that a user can fix.

Scripts turn it into a single line on standard error and exit code 1; any other
exception is a bug of this project and keeps its traceback.
"""

_MAX_CHARACTERS = 1500


class UserError(ValueError):
    """A bad file, flag or setting.

    Its text is `what: problem; fix` and names the flag or the file.
    """

    def __str__(self) -> str:
        return shortened(super().__str__())


def shortened(text: str) -> str:
    """A message without its middle if it is long, as content of a file is.

    The problem is at the start of a message, the fix at its end.
    """
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} [...] {text[-half:]}"
