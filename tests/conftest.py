# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the import path and the folder of reference data."""

import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))


@pytest.fixture(scope="session")
def shared():
    """The folder with real data and reference numbers, if there is one."""
    if not SHARED.is_dir():
        pytest.skip("no reference data in {}".format(SHARED))
    return SHARED
