#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The model zoo's entry point for speed: train_full_1p.sh, its flags and its
# summary, on a small share of the work. The examples_per_second of the
# summary is the figure to compare.
#
#   bash scripts/train_performance_1p.sh --data_path=SQUAD --ckpt_path=MODEL
set -euo pipefail

TASK=${TASK:-squad_v1.1}
export TASK OUT_DIR=${OUT_DIR:-./output/${TASK}_performance}

short=(--num_train_epochs=0.1 --do_predict=True)
if [[ $TASK == pretraining ]]; then
  short=(--num_train_steps=1000 --num_warmup_steps=100 --do_eval=False)
fi
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_full_1p.sh" "${short[@]}" \
    --display_loss_steps=10 "$@"
