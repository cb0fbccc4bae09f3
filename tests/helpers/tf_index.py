# SPDX-License-Identifier: Apache-2.0
"""Index files of TensorFlow checkpoints, sound or damaged, with checksums.

Entries come from TensorFlow's own protocol buffers; the table around them is
packed here, so that damage reaches the code behind the checksums.
"""

import struct

from tensorflow.core.protobuf import tensor_bundle_pb2

from common import tf_example, tfrecord

HEADER = tensor_bundle_pb2.BundleHeaderProto(num_shards=1).SerializeToString()


def entry(*, dims=(2,), **fields):
    """The bytes of a BundleEntryProto."""
    message = tensor_bundle_pb2.BundleEntryProto(**fields)
    for size in dims:
        message.shape.dim.add(size=size)
    return message.SerializeToString()


def block(pairs):
    """A block: each key in full, one restart point, at the start."""
    body = b""
    for key, value in pairs:
        body += b"\0" + tf_example.encode_varint(len(key))
        body += tf_example.encode_varint(len(value)) + key + value
    return body + struct.pack("<II", 0, 1)


def table(blocks, times=1):
    """A table of blocks of (key, value) pairs, each block listed `times`."""
    data, handles = b"", []
    index = [block(pairs) for pairs in blocks]
    for content in index + [block([]), None]:
        if content is None:
            content = block(
                (b"%06d" % number, handle)
                for number, handle in enumerate(handles[:-1] * times)
            )
        handles.append(
            tf_example.encode_varint(len(data))
            + tf_example.encode_varint(len(content))
        )
        crc = tfrecord.masked_crc32c(content + b"\0")
        data += content + b"\0" + struct.pack("<I", crc)
    footer = b"".join(handles[-2:]).ljust(40, b"\0")
    return data + footer + bytes.fromhex("57fb808b247547db")
