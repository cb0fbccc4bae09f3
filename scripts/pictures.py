# SPDX-License-Identifier: Apache-2.0
"""Loads matplotlib, which is optional, and saves figures."""

import typing

from common import errors, files

# One per run or kind, distinct for most colour-blind readers too.
# Source: Okabe & Ito 2008, "Color Universal Design".
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)


def load_pyplot(user: str) -> typing.Any:
    """The module matplotlib.pyplot, which draws into files.

    Args:
      user: the script or flag that needs it, for the message.

    Raises:
      errors.UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise errors.missing_package(user, "matplotlib", "plots") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure: typing.Any, path: str, dpi: int = 120) -> None:
    """Writes a figure as PNG; the file appears when it is complete."""
    with files.new_file(str(path)) as stream:
        figure.savefig(stream, format="png", dpi=dpi)
