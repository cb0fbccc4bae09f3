# SPDX-License-Identifier: Apache-2.0
"""What the stand-in has of its own and the adapter has not."""
