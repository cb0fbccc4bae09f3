#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Trains on this host's Ascend NPUs, one process a device.
#
#   bash scripts/run_8p.sh pretraining|squad_v1.1|squad_v2.0 [FLAG ...]
#
# The flags are those of run_pretraining.sh or run_squadv*.sh, which it starts;
# those given are added. The global batch is train_batch_size x
# num_accumulation_steps x devices.
#
# On several hosts run it on each, with the same RANK_TABLE_FILE, JOB_ID and
# OUT_DIR, and with SERVER_INDEX 0, 1, ... in the order of the table. Exits
# with 0, the code of the first process that failed, or 128 + the signal that
# ended it. Edit the settings, or set the same names in the environment.
set -euo pipefail

# Written by scripts/make_rank_table.py. Empty: one is made for this host.
RANK_TABLE_FILE=${RANK_TABLE_FILE:-}
# Devices of this host. Empty: those in the table, or 8.
DEVICES=${DEVICES:-}
SERVER_INDEX=${SERVER_INDEX:-0}
# For the table that is made; DEVICE_IPS empty reads /etc/hccn.conf.
SERVER_IP=${SERVER_IP:-127.0.0.1}
DEVICE_IPS=${DEVICE_IPS:-}
# Seconds until the other processes are killed after one has failed.
GRACE_SECONDS=${GRACE_SECONDS:-30}
export JOB_ID=${JOB_ID:-10086}

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/launching.sh
source "$REPOSITORY/scripts/launching.sh"
export PYTHON

fail() {
  echo "run_8p.sh: error: $1" >&2
  exit 1
}

TASK=${1:-}
case $TASK in
  pretraining) LAUNCHER=run_pretraining.sh ;;
  squad_v1.1) LAUNCHER=run_squadv1.1.sh ;;
  squad_v2.0) LAUNCHER=run_squadv2.0.sh ;;
  *) fail "unknown task '$TASK'; expected pretraining, squad_v1.1 or squad_v2.0" ;;
esac
shift

export OUT_DIR=${OUT_DIR:-./output/${TASK}_8p}
LOG_DIR=${LOG_DIR:-$OUT_DIR/logs}
mkdir -p "$LOG_DIR"

if [ -z "$RANK_TABLE_FILE" ]; then
  DEVICES=${DEVICES:-8}
  RANK_TABLE_FILE=$LOG_DIR/rank_table.json
  "$PYTHON" "$REPOSITORY/scripts/make_rank_table.py" --hosts="$SERVER_IP" \
      --devices="$DEVICES" --device_ips="$DEVICE_IPS" \
      --output="$RANK_TABLE_FILE"
fi
[ -r "$RANK_TABLE_FILE" ] || fail \
    "RANK_TABLE_FILE=$RANK_TABLE_FILE: cannot be read; write it with scripts/make_rank_table.py"
export RANK_TABLE_FILE

# Prints how often the table has a key.
count() { { grep -o "\"$1\"" "$RANK_TABLE_FILE" || true; } | wc -l; }
RANK_SIZE=$(count rank_id)
servers=$(count server_id)
if [ "$RANK_SIZE" -eq 0 ] || [ "$servers" -eq 0 ]; then
  fail "$RANK_TABLE_FILE has no rank_id or no server_id; write it with scripts/make_rank_table.py"
fi
DEVICES=${DEVICES:-$((RANK_SIZE / servers))}
export RANK_SIZE
case $DEVICES$SERVER_INDEX in
  *[!0-9]*) fail "DEVICES is '$DEVICES' and SERVER_INDEX '$SERVER_INDEX'; expected whole numbers" ;;
esac
first=$((DEVICES * SERVER_INDEX))
if [ "$DEVICES" -lt 1 ] || [ $((first + DEVICES)) -gt "$RANK_SIZE" ]; then
  fail "DEVICES=$DEVICES and SERVER_INDEX=$SERVER_INDEX are ranks $first to $((first + DEVICES - 1)), but $RANK_TABLE_FILE has $RANK_SIZE ranks"
fi

distributed=--distributed=True
if [ "$RANK_SIZE" -eq 1 ]; then
  distributed=--distributed=False
  unset RANK_TABLE_FILE
fi

pids=()  # by device; "" once it has ended

# Sends a signal to the running processes and to those they started.
signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    [ -z "$pid" ] || kill "-$1" -- "-$pid" 2> /dev/null || true
  done
}

is_running() { kill -0 -- "$1" 2> /dev/null; }

# Whether a process runs, including one that a launcher left behind.
any_running() {
  local pid
  for pid in "${pids[@]}"; do
    if [ -n "$pid" ] && is_running "-$pid"; then return 0; fi
  done
  return 1
}

# A signal interrupts this, unlike a plain sleep.
pause() { sleep "$1" & wait $! || true; }

end_all() {
  local waited=0
  exec 2> /dev/null  # the shell reports each killed process
  signal_all "$1"
  while any_running && [ "$waited" -lt "$GRACE_SECONDS" ]; do
    pause 1
    waited=$((waited + 1))
  done
  signal_all KILL
}

on_signal() {
  trap '' TERM INT
  echo "run_8p.sh: SIG$1 passed on to all processes" >&2
  end_all "$1"
  exit $((128 + $2))
}
trap 'on_signal TERM 15' TERM
trap 'on_signal INT 2' INT

# Every process leads a group of its own, so that a signal reaches Python
# behind the launcher too.
set -m
echo "run_8p.sh: $TASK on $DEVICES devices, ranks $first to $((first + DEVICES - 1)) of $RANK_SIZE, logs in $LOG_DIR"
for ((device = 0; device < DEVICES; device++)); do
  RANK_ID=$((first + device)) ASCEND_DEVICE_ID=$device \
      bash "$REPOSITORY/scripts/$LAUNCHER" --accelerator=npu "$distributed" \
      "$@" > "$LOG_DIR/device_$device.log" 2>&1 < /dev/null &
  pids+=($!)
done

left=$DEVICES
while [ "$left" -gt 0 ]; do
  pause 1
  for ((device = 0; device < DEVICES; device++)); do
    pid=${pids[device]}
    if [ -z "$pid" ] || is_running "$pid"; then continue; fi
    pids[device]=""
    left=$((left - 1))
    code=0
    wait "$pid" || code=$?
    [ "$code" -ne 0 ] || continue
    log=$LOG_DIR/device_$device.log
    {
      echo "run_8p.sh: error: rank $((first + device)) (device $device) ended with code $code; stopping all. Last lines of $log:"
      tail -n 20 "$log"
    } >&2
    end_all TERM
    exit "$code"
  done
done
echo "run_8p.sh: $TASK finished; log: $LOG_DIR/device_0.log, results: $OUT_DIR"
