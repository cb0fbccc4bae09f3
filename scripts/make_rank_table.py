#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the rank table that several Ascend NPUs train by.

    python3 scripts/make_rank_table.py --hosts=10.0.0.1 --devices=8 \
      --output=rank_table.json

Every device has an address of its own. One host's are read from its
/etc/hccn.conf; for several hosts name a copy of each one's file with
--hccn_conf, or all addresses with --device_ips, in the order of the ranks.
Needs no package but Python's own.

Source: Huawei's TensorFlow 1.15 porting guide, "Preparing a Rank Table".
"""

import argparse
import ipaddress
import json
import os
import re
import sys

_HCCN_CONF = "/etc/hccn.conf"


class Mistake(Exception):
    """What a user gave, what was expected, how to mend it."""


def rank_table(hosts, addresses):
    """The table as a dictionary; every value in it is a string.

    Args:
      hosts: one address for each host, in order.
      addresses: for each host the addresses of its devices, device 0 first.
    """
    servers, rank = [], 0
    for host, host_addresses in zip(hosts, addresses):
        devices = []
        for device, address in enumerate(host_addresses):
            devices.append(
                {
                    "device_id": str(device),
                    "device_ip": address,
                    "rank_id": str(rank),
                }
            )
            rank += 1
        servers.append({"server_id": host, "device": devices})
    return {
        "version": "1.0",
        "status": "completed",
        "server_count": str(len(servers)),
        "server_list": servers,
    }


def read_hccn_conf(path, devices):
    """Addresses of the first devices in a file of lines address_0=10.0.0.1.

    Args:
      path: the file.
      devices: how many are wanted.
    """
    with open(path, encoding="utf-8", errors="replace") as stream:
        found = dict(
            re.findall(
                r"^\s*address_(\d+)\s*=\s*(\S+)", stream.read(), re.MULTILINE
            )
        )
    missing = [number for number in range(devices) if str(number) not in found]
    if missing:
        raise Mistake(
            f"{path} has no line address_{missing[0]}=; expected one for each "
            f"of {devices} devices, or give --device_ips"
        )
    return [found[str(number)] for number in range(devices)]


def device_addresses(hosts, devices, device_ips, files):
    """[[address of each device] of each host].

    Args:
      hosts: addresses of the hosts.
      devices: of each host.
      device_ips: addresses in the order of the ranks, or [].
      files: a hccn.conf of each host, or [] for this host's own.
    """
    if device_ips:
        wanted = len(hosts) * devices
        if len(device_ips) != wanted:
            raise Mistake(
                f"--device_ips has {len(device_ips)} addresses; expected "
                f"{wanted}, one for each of {devices} devices on {len(hosts)} "
                "hosts"
            )
        return [
            device_ips[first : first + devices]
            for first in range(0, wanted, devices)
        ]
    if not files and len(hosts) > 1:
        raise Mistake(
            f"--hosts names {len(hosts)} hosts, but {_HCCN_CONF} has the "
            "devices of one; give --hccn_conf=FILE,FILE with a copy of each "
            "host's, or --device_ips"
        )
    if not files and not os.path.exists(_HCCN_CONF):
        raise Mistake(
            f"the addresses of the devices are not known: {_HCCN_CONF} is not "
            "there; give --device_ips=ADDRESS,..., which hccn_tool -i 0 -ip "
            "-g prints for device 0"
        )
    files = files or [_HCCN_CONF]
    if len(files) != len(hosts):
        raise Mistake(
            f"--hccn_conf has {len(files)} files; expected one for each of "
            f"{len(hosts)} hosts"
        )
    return [read_hccn_conf(path, devices) for path in files]


def check_addresses(name, addresses):
    """Raises Mistake unless they are IP addresses, each of them once."""
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise Mistake(
                f"{name} has {address!r}; expected an address such as 10.0.0.1"
            ) from None
    twice = sorted({a for a in addresses if addresses.count(a) > 1})
    if twice:
        raise Mistake(f"{name} has {twice[0]} more than once; each has its own")


def write(path, table):
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


def parse(arguments):
    """The flags as a namespace."""
    parser = _Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--hosts",
        required=True,
        type=_list,
        help="addresses of the hosts, comma separated, the "
        "one with rank 0 first",
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


def main(arguments):
    """Writes the file; 1 and one line on standard error at a mistake."""
    try:
        options = parse(arguments)
        if not options.hosts:
            raise Mistake(
                "--hosts is empty; expected an address such as 10.0.0.1"
            )
        check_addresses("--hosts", options.hosts)
        addresses = device_addresses(
            options.hosts,
            options.devices,
            options.device_ips,
            options.hccn_conf,
        )
        check_addresses(
            "--device_ips" if options.device_ips else "the hosts' hccn.conf",
            sum(addresses, []),
        )
        write(options.output, rank_table(options.hosts, addresses))
    except Mistake as mistake:
        sys.stderr.write(f"make_rank_table.py: error: {mistake}\n")
        return 1
    except OSError as error:
        sys.stderr.write(
            f"make_rank_table.py: error: cannot use {error.filename!r}: "
            f"{error.strerror}\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
