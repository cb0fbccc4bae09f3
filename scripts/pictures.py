# SPDX-License-Identifier: Apache-2.0
"""Where the scripts that draw get matplotlib from; it is optional."""

import os

from common import errors

# One a run or a kind, told apart by most colour-blind readers too.
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


def load_pyplot(user):
    """matplotlib.pyplot, drawing into files.

    Args:
      user: the script or flag that needs it, for the message.

    Raises:
      errors.UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise errors.UserError(
            f"{user} needs matplotlib; pip install -r requirements/plots.txt"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure, path, dpi=120):
    """Writes a figure as PNG; the file appears when it is complete."""
    draft = str(path) + ".incomplete"
    try:
        figure.savefig(draft, format="png", dpi=dpi)
        os.replace(draft, str(path))
    finally:
        if os.path.exists(draft):
            os.remove(draft)
