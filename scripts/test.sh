#!/usr/bin/env bash
# Installs the project with its test extra into .venv and runs the tests; `--all` adds the slow ones.
# Further arguments go to pytest: ./scripts/test.sh tests/test_t5.py -k packed -n 0
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh '[test]'
selection=()
if [ "${1:-}" = "--all" ]; then
  selection=(-m "slow or not slow")
  shift
fi
python -m scripts.prompts fetch || echo "prompts could not be fetched: tests that need them are skipped"
# Two processes: most of a test is Python and compiling, which one process does on one core.
exec python -m pytest -n 2 --dist loadfile ${selection[@]+"${selection[@]}"} "$@"
