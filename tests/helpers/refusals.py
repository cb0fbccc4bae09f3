# SPDX-License-Identifier: Apache-2.0
"""What every refusal of a script looks like, and where it is explained."""

import functools
import os
import re

from helpers.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "errors.md"


@functools.lru_cache(maxsize=None)
def explained():
    """{message of docs/errors.md: its pattern}; `…` stands for anything."""
    messages = re.findall(
        r"^\| `([^`]*)` \| [^|]+ \| [^|]+ \|$",
        PAGE.read_text("utf-8"),
        re.MULTILINE,
    )
    return {
        message: re.compile(
            ".*".join(map(re.escape, message.split("…"))), re.DOTALL
        )
        for message in messages
    }


def check(script, log, words):
    """Checks standard error of a script that was refused.

    Args:
      script: its path.
      log: what it wrote to standard error.
      words: regular expressions that its last line must hold.

    Returns:
      The last line.
    """
    last = log.splitlines()[-1]
    begin = f"{os.path.basename(script)}: error: "
    assert last.startswith(begin), log[-2000:]
    assert "Traceback" not in log
    for word in words:
        assert re.search(word, last), last
    message = last[len(begin) :]
    assert any(
        pattern.fullmatch(message) for pattern in explained().values()
    ), "docs/errors.md does not explain: " + message
    return last
