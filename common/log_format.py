# SPDX-License-Identifier: Apache-2.0
"""The form of a log line, the same in all commands and scripts."""

import logging
import time


class Formatter(logging.Formatter):
    """`2026-01-31 12:00:00 I message`."""

    def format(self, record):
        return (
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} {record.levelname[0]} "
            f"{record.getMessage()}"
        )
