#!/usr/bin/env bash
# Ends what up.sh started, the last first, and nothing else.
set -euo pipefail

folder=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/resnet8-quant-slurm}
[ -f "$folder/pids" ] || exit 0
tac "$folder/pids" | while read -r pid name; do
  kill "$pid" 2>/dev/null || continue
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  if kill -0 "$pid" 2>/dev/null; then
    echo "$name does not end: killed"
    kill -9 "$pid"
  fi
done
rm -f "$folder/pids"
