# Sourced by demo.sh and test.sh: a virtual environment in .venv with the project (and its extras) installed.
# Usage: source scripts/venv.sh [EXTRAS], e.g. `source scripts/venv.sh '[test]'`. PYTHON chooses the interpreter.

extras="${1:-}"
python="${PYTHON:-python3}"
"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"t0jax needs Python 3.11 or newer; this is {sys.version.split()[0]}. Set PYTHON to a newer one.")
PY
[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=".venv/installed${extras}"
wanted="$(cat setup.py pyproject.toml | cksum) $(.venv/bin/python --version)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing t0jax${extras} into .venv (a few minutes the first time)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras}"
  echo "$wanted" > "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
