#!/usr/bin/env bash
# The whole corridor on generated data, from an empty machine: install, train, export, check the export, score.
# Needs Python 3.11 or newer (PYTHON chooses it) and 2 cores; nothing is downloaded but the packages.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh ''

run="${1:-runs/toy}"
if [ -e "$run" ]; then
  echo "$run holds an earlier run: it is resumed (remove it to start anew)"
fi
SECONDS=0
python -m scripts.train --config configs/toy.yaml --train.output_dir "$run"
echo "trained in ${SECONDS} s"
python -m scripts.convert to-hf "$run" "$run/hf"
python -m scripts.convert check "$run" "$run/hf"
echo "prompts that were never trained on:"
python -m scripts.evaluate --model "$run" --module tasks.toy --mixture toy_eval_score_eval \
  --output "$run/scores" --overwrite
echo "train, export, check, score: ${SECONDS} s; scores in $run/scores, the export in $run/hf"
