# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: what the tasks share, their data and their scores."""
