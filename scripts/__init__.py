# SPDX-License-Identifier: Apache-2.0
"""Programs around the suite: data, checks, benchmarks, pages, pictures."""
