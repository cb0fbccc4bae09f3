#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The model zoo's entry point for speed: a pre-training of 200 steps on one NPU,
# with the predecessor's settings.
#
#   bash scripts/train_performance_1p.sh --data_path=DIR [FLAG ...]
#
# --help lists the flags. Ends with one line of key=value for each run. Edit
# the settings, or set the same names in the environment.
set -euo pipefail

OUT_DIR=${OUT_DIR:-./output/performance_1p}
PRETRAINING_FLAGS=${PRETRAINING_FLAGS:---num_train_steps=200 --save_checkpoints_steps=200}

# shellcheck source=scripts/model_zoo.sh
source "$(dirname "${BASH_SOURCE[0]}")/model_zoo.sh"
parse_flags "$@"

# shellcheck disable=SC2086
train pretraining run_pretraining.sh \
    --flagfile="$SCRIPTS/../configs/predecessor_pretraining.flags" \
    --input_files_dir="$RECORDS_DIR" \
    --iterations_per_loop=20 --display_loss_steps=20 $PRETRAINING_FLAGS

echo "------------------ Final result ------------------"
summary pretraining
echo "seconds=$SECONDS"
