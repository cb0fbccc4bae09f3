# SPDX-License-Identifier: Apache-2.0
"""The version of the suite; CHANGELOG.md describes the changes."""

VERSION = "2.0.0.dev0"
