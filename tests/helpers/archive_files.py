# SPDX-License-Identifier: Apache-2.0
"""Writes .zip and .tar.gz files, hostile ones too."""

import io
import tarfile
import zipfile


def write_zip(path, members):
    """A .zip file of [(name, bytes)]."""
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
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
