#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Writes the rank table of a training on several Ascend NPUs.

    python3 scripts/make_rank_table.py --hosts=10.0.0.1 --devices=8 \
      --output=rank_table.json

Every device has its own address. For one host they are read from its
/etc/hccn.conf; for several hosts name a copy of each host's file with
--hccn_conf, or all addresses with --device_ips, in the order of the ranks.
Needs only Python's standard library, no other file of this repository.

Source: Huawei's TensorFlow 1.15 porting guide, "Preparing a Rank Table".
"""

import argparse
import ipaddress
import itertools
import json
import os
import re
import signal
import sys
import typing

_HCCN_CONF = "/etc/hccn.conf"


class Mistake(Exception):
    """A mistake of the user; the text says how to fix it."""


def rank_table(
    hosts: typing.List[str], addresses: typing.List[typing.List[str]]
) -> typing.Dict[str, typing.Any]:
    """The table; every value in it is a string.

    Args:
      hosts: one address for each host, in order.
      addresses: for each host the addresses of its devices, device 0 first.
    """
    ranks = itertools.count()
    servers = [
        {
            "server_id": host,
            "device": [
                {
                    "device_id": str(device),
                    "device_ip": address,
                    "rank_id": str(next(ranks)),
                }
                for device, address in enumerate(host_addresses)
            ],
        }
        for host, host_addresses in zip(hosts, addresses)
    ]
    return {
        "version": "1.0",
        "status": "completed",
        "server_count": str(len(servers)),
        "server_list": servers,
    }


def read_hccn_conf(path: str, devices: int) -> typing.List[str]:
    """Addresses of the first devices in a file of lines address_0=10.0.0.1."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        addresses = dict(
            re.findall(
                r"^\s*address_(\d+)\s*=\s*(\S+)", stream.read(), re.MULTILINE
            )
        )
    numbers = list(map(str, range(devices)))
    missing = [number for number in numbers if number not in addresses]
    if missing:
        raise Mistake(
            f"{path} has no line address_{missing[0]}=; expected one for each "
            f"of {devices} devices, or pass --device_ips"
        )
    return [addresses[number] for number in numbers]


def device_addresses(
    hosts: typing.List[str],
    devices: int,
    device_ips: typing.List[str],
    files: typing.List[str],
) -> typing.List[typing.List[str]]:
    """The addresses of each host's devices.

    Args:
      hosts: addresses of the hosts.
      devices: of each host.
      device_ips: addresses in the order of the ranks, or [].
      files: a hccn.conf of each host, or [] for this host's own.
    """
    if device_ips:
        total = len(hosts) * devices
        if len(device_ips) != total:
            raise Mistake(
                f"--device_ips has {len(device_ips)} addresses; expected "
                f"{total}, one for each of {devices} devices on {len(hosts)} "
                "hosts"
            )
        return [
            device_ips[first : first + devices]
            for first in range(0, total, devices)
        ]
    if not files and len(hosts) > 1:
        raise Mistake(
            f"--hosts names {len(hosts)} hosts, but {_HCCN_CONF} has the "
            "devices of one; pass --hccn_conf=FILE,FILE with a copy of each "
            "host's, or --device_ips"
        )
    if not files and not os.path.exists(_HCCN_CONF):
        raise Mistake(
            f"{_HCCN_CONF}: does not exist, so the addresses of the devices "
            "are unknown; pass --device_ips=ADDRESS,..., which hccn_tool -i 0 "
            "-ip -g prints for device 0"
        )
    files = files or [_HCCN_CONF]
    if len(files) != len(hosts):
        raise Mistake(
            f"--hccn_conf has {len(files)} files; expected one for each of "
            f"{len(hosts)} hosts"
        )
    return [read_hccn_conf(path, devices) for path in files]


def check_addresses(name: str, addresses: typing.List[str]) -> None:
    """Raises Mistake unless they are different IP addresses."""
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise Mistake(
                f"{name} has {address!r}; expected an address such as 10.0.0.1"
            ) from None
        if addresses.count(address) > 1:
            raise Mistake(
                f"{name} has {address} more than once; expected different "
                "addresses"
            )


def write(path: str, table: typing.Dict[str, typing.Any]) -> None:
    """Writes JSON; the file appears when it is complete."""
    temporary = f"{path}.{os.getpid()}.incomplete"
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump(table, stream, indent=2)
            stream.write("\n")
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Mistake(f"{message}; --help lists the flags")


def _list(text):
    return [part.strip() for part in text.split(",") if part.strip()]


def parse(arguments: typing.List[str]) -> argparse.Namespace:
    """The flags as a namespace."""
    parser = _Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--hosts",
        required=True,
        type=_list,
        help="addresses of the hosts, comma separated, rank 0's first",
    )
    parser.add_argument(
        "--devices",
        default=8,
        type=int,
        choices=(1, 2, 4, 8),
        help="of each host; default 8",
    )
    parser.add_argument(
        "--device_ips",
        default=[],
        type=_list,
        help="addresses of the devices, in the order of the ranks",
    )
    parser.add_argument(
        "--hccn_conf",
        default=[],
        type=_list,
        help=f"a copy of each host's {_HCCN_CONF}",
    )
    parser.add_argument("--output", required=True, help="the file to write")
    return parser.parse_args(arguments)


def _write_table(options):
    if not options.hosts:
        raise Mistake("--hosts is empty; expected an address such as 10.0.0.1")
    check_addresses("--hosts", options.hosts)
    addresses = device_addresses(
        options.hosts, options.devices, options.device_ips, options.hccn_conf
    )
    check_addresses(
        "--device_ips" if options.device_ips else "the hosts' hccn.conf",
        sum(addresses, []),
    )
    write(options.output, rank_table(options.hosts, addresses))


def main(arguments: typing.List[str]) -> int:
    """Writes the file; a mistake is one line on standard error and code 1."""
    try:
        try:
            _write_table(parse(arguments))
        finally:
            sys.stdout.flush()  # of --help
        return 0
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Mistake as mistake:
        message = str(mistake)
    except OSError as error:
        message = f"cannot use {error.filename!r}: {error.strerror}"
    sys.stderr.write(f"make_rank_table.py: error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
