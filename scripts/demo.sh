#!/usr/bin/env bash
# The whole corridor on generated data, from an empty machine: install, train, score, export, check the export.
# Needs Python 3.11 or newer (PYTHON chooses it) and 2 cores; nothing is downloaded but the packages.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

run="${1:-runs/toy}"
if [ -e "$run" ]; then
  echo "$run holds an earlier run: it is resumed (remove it to start anew)"
fi
SECONDS=0
python -m scripts.train --config configs/toy.yaml --train.output_dir "$run"
echo "trained in ${SECONDS} s"
python -m scripts.evaluate --model "$run" --module tasks.toy --mixture toy_eval_score_eval \
  --output "$run/scores" --overwrite | tee "$run/scores.txt"
python -m scripts.convert to-hf "$run" "$run/hf"
python -m scripts.convert check "$run" "$run/hf"

echo
echo "Prompts that were never trained on ($run/scores/results.json):"
cat "$run/scores.txt"
echo "train, score, export, check: ${SECONDS} s; the export is in $run/hf"
