# SPDX-License-Identifier: Apache-2.0
"""JSON from files that nobody vouches for: bounded in depth and digits.

Python's own parser overflows its stack on deep nesting, and turning digits
into an int takes quadratic time. How large a file may be its reader says.
"""
import json

MAX_DEPTH = 32
MAX_DIGITS = 20


def loads(text, **options):
    """The value of a JSON text; arguments as of json.loads.

    Raises:
      ValueError: no JSON, nested too deeply, or a whole number with more
        digits than any that is meant.
    """
    try:
        value = json.loads(text, parse_int=_bounded_int, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply")
    _check_depth(value)
    return value


def unique(pairs):
    """As `object_pairs_hook`: refuses an object that has a key twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands in it twice")
    return values


def _bounded_int(digits):
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number of %d digits" % len(digits))
    return int(digits)


def _check_depth(value):
    """Refuses what messages and later steps could not walk through."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level if isinstance(parent, (dict, list))
                 for child in (parent.values() if isinstance(parent, dict)
                               else parent)]
    if level:
        raise ValueError("it is nested too deeply, more than %d values in "
                         "each other" % MAX_DEPTH)
