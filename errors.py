# SPDX-License-Identifier: Apache-2.0
"""The one exception that means: the user can mend this.

Scripts turn it into a single line on standard error and exit code 1; any other
exception is a bug of this project and keeps its traceback.
"""


class UserError(ValueError):
    """A bad file, flag or setting.

    Its text says what was given, what was expected and how to mend it.
    """
