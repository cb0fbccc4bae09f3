#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Pre-trains RoBERTa on one device; scripts/run_8p.sh takes eight. The records
# are those of scripts/create_pretraining_data.sh.
#
#   bash scripts/run_pretraining.sh [FLAG ...]
#
# Edit the paths, or set the same names in the environment. Flags given are
# added to those below, and override them.
set -euo pipefail

BERT_BASE_DIR=${BERT_BASE_DIR:-./roberta_base}
BookCorpus_DIR=${BookCorpus_DIR:-./bookcorpus}
OUT_DIR=${OUT_DIR:-./output/pretraining}

# Read by the Ascend driver; without meaning elsewhere.
export JOB_ID=${JOB_ID:-10086}
export ASCEND_DEVICE_ID=${ASCEND_DEVICE_ID:-0}

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/launching.sh
source "$REPOSITORY/scripts/launching.sh"
# Flags may replace paths, so with flags the program looks for them.
if ((! $#)) && name_missing BERT_BASE_DIR BookCorpus_DIR; then exit 1; fi

# The paper's recipe (section 4.3, base, BookCorpus and Wikipedia) at the batch
# that its devices allow, 16 x 16 sequences a device:
#   1 device:   16 x 16 x 1 =   256, rate 1e-4, 1,000,000 steps: perplexity 3.99
#   8 devices:  16 x 16 x 8 = 2,048, rate 7e-4,   125,000 steps: perplexity 3.68
# configs/pretrain_base.flags and pretrain_large.flags hold its full recipe,
# 8,192 sequences. A device of 16 GB takes 8 x 32; without an accelerator add
# --manual_fp16=False --use_fp16_cls=False.
#
# The predecessor's settings, to compare with; add
# --flagfile=configs/predecessor_pretraining.flags for all of them:
#   --max_seq_length=128 --max_predictions_per_seq=20 --train_batch_size=32
#   --num_accumulation_steps=1 --learning_rate=2e-5 --num_warmup_steps=100
#   --num_train_steps=100000 --adam_beta2=0.999 --adam_epsilon=1e-4
#   --clip_norm=1.0 --npu_bert_clip_by_global_norm=False
"$PYTHON" "$REPOSITORY/run_pretraining.py" \
    --bert_config_file="$BERT_BASE_DIR/config.json" \
    --input_files_dir="$BookCorpus_DIR/pretrain_data" \
    --eval_files_dir="$BookCorpus_DIR/eval_data" \
    --do_train=True \
    --max_seq_length=512 \
    --max_predictions_per_seq=80 \
    --train_batch_size=16 \
    --num_accumulation_steps=16 \
    --learning_rate=1e-4 \
    --num_warmup_steps=10000 \
    --num_train_steps=1000000 \
    --optimizer_type=adam \
    --adam_beta1=0.9 \
    --adam_beta2=0.98 \
    --adam_epsilon=1e-6 \
    --weight_decay_rate=0.01 \
    --clip_norm=0 \
    --manual_fp16=True \
    --use_fp16_cls=True \
    --npu_bert_loss_scale=0 \
    --iterations_per_loop=100 \
    --save_checkpoints_steps=10000 \
    --output_dir="$OUT_DIR" \
    --out_log_dir="$OUT_DIR/loss" \
    "$@" || end_with $? BERT_BASE_DIR BookCorpus_DIR
