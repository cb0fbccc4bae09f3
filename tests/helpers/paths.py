# SPDX-License-Identifier: Apache-2.0
"""Where the repository and the reference data are."""

import os
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
SHARED = pathlib.Path(
    os.environ.get("TEST_DATA") or REPOSITORY.parent / "shared"
)
GOLDEN = REPOSITORY / "tests" / "data" / "golden"
FIRST_VERSION = REPOSITORY / "tests" / "data" / "first_version"

if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))
