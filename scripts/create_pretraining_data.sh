#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Turns text into pre-training records. Edit the paths, or set the same names
# in the environment; more flags may be given on the command line:
#
#   bash scripts/create_pretraining_data.sh --num_workers=4
set -euo pipefail

BERT_BASE_DIR=${BERT_BASE_DIR:-./roberta_base}       # vocab.json, merges.txt
BookCorpus_DIR=${BookCorpus_DIR:-./bookcorpus}       # the text, the records

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/launching.sh
source "$REPOSITORY/scripts/launching.sh"
# Flags may replace paths, so with flags the program looks for them.
if ((! $#)) && name_missing BERT_BASE_DIR BookCorpus_DIR; then exit 1; fi

# RoBERTa's recipe: cased text, full sequences of 512 tokens, masks drawn
# again each time a sequence is fed.
#
# The predecessor's settings, to compare with:
#   --masking=static --do_lower_case=True --max_seq_length=128
#   --max_predictions_per_seq=20 --dupe_factor=5 --line_break=none
"$PYTHON" "$REPOSITORY/create_pretraining_data.py" \
  --input_file="$BookCorpus_DIR/test_bookscorpus.txt" \
  --output_file="$BookCorpus_DIR/pretrain_data" \
  --vocab_file="$BERT_BASE_DIR/vocab.json" \
  --merges_file="$BERT_BASE_DIR/merges.txt" \
  --masking=dynamic \
  --do_lower_case=False \
  --max_seq_length=512 \
  --max_predictions_per_seq=80 \
  --masked_lm_prob=0.15 \
  --random_seed=12345 \
  "$@" || end_with $? BERT_BASE_DIR BookCorpus_DIR
