#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Fine-tunes RoBERTa-large on SQuAD v2.0, answers the development questions and
# scores the answers.
#
#   bash scripts/run_squadv2.0.sh [FLAG ...]
#
# Edit the paths, or set the same names in the environment. Flags given are
# added to those below, and override them.
set -euo pipefail

BERT_BASE_DIR=${BERT_BASE_DIR:-./roberta_large}
INIT_CHECKPOINT=${INIT_CHECKPOINT:-$BERT_BASE_DIR/tf_model/roberta_large.ckpt}
SQUAD_DIR=${SQUAD_DIR:-./squad}
OUT_DIR=${OUT_DIR:-./output/squad_v2.0}

# Read by the Ascend driver; without meaning elsewhere.
export JOB_ID=${JOB_ID:-10086}
export ASCEND_DEVICE_ID=${ASCEND_DEVICE_ID:-0}

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/launching.sh
source "$REPOSITORY/scripts/launching.sh"
# Flags may replace paths, so with flags the program looks for them, as for
# INIT_CHECKPOINT always, which may be hf:NAME.
if ((! $#)) && name_missing BERT_BASE_DIR SQUAD_DIR; then exit 1; fi

# The paper's settings (EM / F1 86.5 / 89.4; sources in
# configs/squad_v2.0_large.flags): a batch of 48 = 12 x 4 on one device of 32
# GB; with 16 GB take 4 x 12. Without an accelerator add --manual_fp16=False.
#
# The predecessor's settings (EM / F1 79.3 / 82.8), to compare with; add
# --flagfile=configs/predecessor_squad_v2.0.flags for all of them:
#   --train_batch_size=4 --num_accumulation_steps=1 --learning_rate=3e-5
#   --warmup_proportion=0.1 --adam_beta2=0.999 --clip_norm=1.0
#   --answerability_head=False
"$PYTHON" "$REPOSITORY/run_squad.py" \
    --vocab_file="$BERT_BASE_DIR/vocab.json" \
    --merges_file="$BERT_BASE_DIR/merges.txt" \
    --bert_config_file="$BERT_BASE_DIR/config.json" \
    --init_checkpoint="$INIT_CHECKPOINT" \
    --do_train=True \
    --train_file="$SQUAD_DIR/train-v2.0.json" \
    --do_predict=True \
    --predict_file="$SQUAD_DIR/dev-v2.0.json" \
    --version_2_with_negative=True \
    --answerability_head=True \
    --max_seq_length=512 \
    --doc_stride=128 \
    --train_batch_size=12 \
    --num_accumulation_steps=4 \
    --predict_batch_size=32 \
    --learning_rate=1.5e-5 \
    --num_train_epochs=2.0 \
    --warmup_proportion=0.06 \
    --optimizer_type=adam \
    --adam_beta1=0.9 \
    --adam_beta2=0.98 \
    --weight_decay_rate=0.01 \
    --clip_norm=0 \
    --manual_fp16=True \
    --npu_bert_loss_scale=0 \
    --output_dir="$OUT_DIR" \
    "$@" || end_with $? BERT_BASE_DIR INIT_CHECKPOINT SQUAD_DIR

score 2.0 "$@"
