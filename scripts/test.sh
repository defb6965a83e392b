#!/usr/bin/env bash
# Installs the project with its test extra into .venv and runs the tests; `--all` adds the slow ones.
# Further arguments go to pytest: ./scripts/test.sh tests/test_t5.py -k packed
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh '[test]'
selection=()
if [ "${1:-}" = "--all" ]; then
  selection=(-m "slow or not slow")
  shift
fi
python -m scripts.prompts fetch || echo "prompts could not be fetched: tests that need them are skipped"
exec python -m pytest ${selection[@]+"${selection[@]}"} "$@"
