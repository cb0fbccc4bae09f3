# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile variants of a file's bytes; a generator decides which.

`of_bytes` knows no format. `of_json` changes one value of a JSON text, or how
it is written, so that the rest still parses.
"""

import itertools
import json
import struct

# Numbers at which widths, signs and limits end.
NUMBERS = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    1023,
    1 << 14,
    65535,
    65536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 48,
    (1 << 53) + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    1 << 64,
)
_WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}

# JSON texts of one value each, most of them wrong wherever they stand.
_FRAGMENTS = (
    "null",
    "true",
    "false",
    "[]",
    "{}",
    '""',
    "[null]",
    '{"": null}',
    "-1",
    "1.5",
    "-0.0",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "1e-400",
    "1" * 25,
    "-" + "9" * 400,
    "7" * 20000,
    "0." + "3" * 5000,
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    '"../x"',
    '"/"',
    '"."',
    '"a\\nb\\rc\\u2028"',
    '"\\u001b[31m"',
    '"' + "long " * 20000 + '"',
    "[" * 20 + "]" * 20,
    "[" * 100 + "]" * 100,
    "[" * 100000,
    '{"a":' * 50 + "1" + "}" * 50,
    '{"a":' * 100000,
    "[" + ",".join("0" * 1) + "]",
    "[" + "0," * 20000 + "0]",
    "{" + ",".join(f'"{i}":{i}' for i in range(3000)) + "}",
    '"\u00e9\u4e2d\U0001f600"',
    "01",
    "'x'",
    "undefined",
    "",
)


def of_bytes(data, random, tokens=()):
    """One to four changes that know no format.

    Args:
      data: bytes.
      random: a random.Random.
      tokens: bytes that mean something to the format, put in at random.
    """
    for _ in range(random.choice((1, 1, 2, 4))):
        data = random.choice(_CHANGES)(data, random, tokens)
    return data


def _place(data, random):
    return random.randrange(len(data)) if data else 0


def _flip_bits(data, random, _):
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 3, 20)) if data else 0):
        changed[_place(data, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(data, random, _):
    return data[: _place(data, random)]


def _cut_out(data, random, _):
    start = _place(data, random)
    return data[:start] + data[start + random.randint(1, 64) :]


def _splice(data, random, _):
    """Puts a piece of the file to another place, over what stood there."""
    source, target = _place(data, random), _place(data, random)
    piece = data[source : source + random.randint(1, 200)]
    return (
        data[:target] + piece + data[target + random.choice((0, len(piece))) :]
    )


def _repeat(data, random, _):
    start = _place(data, random)
    piece = data[start : start + random.choice((1, 8, 100, 5000))]
    times = random.choice((2, 3, 50, 1000))
    return (
        data[:start]
        + piece * min(times, 1 + (1 << 18) // (len(piece) or 1))
        + data[start:]
    )


def _number(data, random, _):
    width = random.choice(tuple(_WIDTHS))
    value = random.choice(NUMBERS) & ((1 << 8 * width) - 1)
    packed = struct.pack(random.choice("<>") + _WIDTHS[width], value)
    start = _place(data, random)
    return data[:start] + packed + data[start + width :]


def _noise(data, random, _):
    start = _place(data, random)
    noise = bytes(
        random.randrange(256) for _ in range(random.choice((1, 4, 30)))
    )
    return data[:start] + noise + data[start + random.choice((0, len(noise))) :]


def _token(data, random, tokens):
    start = _place(data, random)
    token = random.choice(tokens) if tokens else b"\0"
    return data[:start] + token + data[start + random.choice((0, len(token))) :]


_CHANGES = (
    _flip_bits,
    _flip_bits,
    _truncate,
    _cut_out,
    _splice,
    _repeat,
    _number,
    _noise,
    _token,
    _token,
)


def of_json(data, random):
    """A JSON text with another value somewhere, or written in another way."""
    value = json.loads(data.decode("utf-8"))
    for _ in range(random.choice((1, 1, 1, 2))):
        target = random.randrange(_size(value))
        text = _written(value, itertools.count(), target, random)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            break
    changed = text.encode("utf-8", "surrogatepass")
    kind = random.randrange(40)
    if kind == 0:
        return b"\xef\xbb\xbf" + changed
    if kind == 1:
        return text.encode("utf-16", "surrogatepass")
    return of_bytes(changed, random) if kind < 6 else changed


def _size(value):
    """Values in a JSON value, itself included."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return 1
    return 1 + sum(map(_size, value))


def _written(value, numbers, target, random):
    """The JSON text of a value; value number `target` is changed."""
    if next(numbers) == target:
        return _changed(value, random)
    if isinstance(value, dict):
        members = ",".join(
            f"{json.dumps(key)}:{_written(item, numbers, target, random)}"
            for key, item in value.items()
        )
        return f"{{{members}}}"
    if isinstance(value, list):
        items = ",".join(
            _written(item, numbers, target, random) for item in value
        )
        return f"[{items}]"
    return json.dumps(value)


def _changed(value, random):
    kind = random.randrange(4)
    if isinstance(value, dict) and value and kind:
        return _changed_object(value, random)
    if isinstance(value, list) and value and kind:
        items = list(map(json.dumps, value))
        place = random.randrange(len(items))
        items[place : place + 1] = random.choice(
            (
                [],
                [items[place]] * 2,
                [items[place]] * 300,
                [random.choice(_FRAGMENTS)],
            )
        )
        return f"[{','.join(items)}]"
    if type(value) in (int, float) and kind:
        near = random.choice((value - 1, value + 1, -value, value * 2))
        return str(random.choice((near,) + NUMBERS + (-1, 0.5)))
    return random.choice(_FRAGMENTS)


def _changed_object(value, random):
    """Without a key, with one twice, or with one of another name."""
    pairs = [[json.dumps(key), json.dumps(item)] for key, item in value.items()]
    place, kind = random.randrange(len(pairs)), random.randrange(4)
    if kind == 0:
        del pairs[place]
    elif kind == 1:
        pairs.append([pairs[place][0], random.choice(pairs)[1]])
    elif kind == 2:
        pairs[place][0] = random.choice(
            ('""', '"\\ud800"', '"\\u0000"', '"x"', f'"{"k" * 5000}"')
        )
    else:
        pairs[place][1] = random.choice(pairs)[1]
    return f"{{{','.join(map(':'.join, pairs))}}}"
