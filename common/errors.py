# SPDX-License-Identifier: Apache-2.0
"""The one exception that means: the user can mend this.

Scripts turn it into a single line on standard error and exit code 1; any other
exception is a bug of this project and keeps its traceback.
"""

_MAX_CHARACTERS = 1500


class UserError(ValueError):
    """A bad file, flag or setting.

    Its text says what was given, what was expected and how to mend it.
    """

    def __str__(self):
        return shortened(super().__str__())


def shortened(text):
    """A message without the middle of what a file put into it.

    The begin says what was given, the end how to mend it.
    """
    if len(text) <= _MAX_CHARACTERS:
        return text
    return (
        f"{text[: _MAX_CHARACTERS // 2]} [...] {text[-_MAX_CHARACTERS // 2 :]}"
    )
