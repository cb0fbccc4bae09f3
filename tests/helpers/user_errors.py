# SPDX-License-Identifier: Apache-2.0
"""What every error of a user looks like: one line, no traceback."""

import os
import re


def check(script, log, words):
    """Checks standard error of a script that ended with a user's error.

    Args:
      script: its path.
      log: what it wrote to standard error.
      words: regular expressions that its last line must match.

    Returns:
      The last line.
    """
    last = log.splitlines()[-1]
    begin = f"{os.path.basename(script)}: error: "
    assert last.startswith(begin), log[-2000:]
    assert "Traceback" not in log
    for word in words:
        assert re.search(word, last), last
    return last
