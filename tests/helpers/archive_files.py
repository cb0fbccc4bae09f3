# SPDX-License-Identifier: Apache-2.0
"""Writes .zip and .tar.gz files, hostile ones too."""

import gzip
import io
import tarfile
import zipfile


def write_zip(path, members, attributes=None):
    """A .zip file of [(name, bytes)]."""
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (attributes or {}).get(name, 0) << 16
            archive.writestr(info, data)
    return str(path)


def write_tar(path, members, kinds=None):
    """A .tar.gz file of [(name, bytes)]."""
    with tarfile.open(str(path), "w:gz") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = (kinds or {}).get(name, tarfile.REGTYPE)
            info.linkname = "/etc/passwd"
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def write_long_header(path, kind, size):
    """A .tar.gz file whose first header has `size` zeros."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, size
    zeros = gzip.compress(bytes(1 << 20))
    path.write_bytes(gzip.compress(info.tobuf()) + zeros * (size >> 20))
    return str(path)
