#!/usr/bin/env bash
# Set up a fresh Debian machine for `make demo` or `make test`: virtual environment, Python packages, and as
# root what the tests drive from outside (Node for the npm packages). Idempotent; quick the second time.
set -euo pipefail
cd "$(dirname "$0")/.."
lane=${1:?usage: scripts/setup.sh demo|test}
venv=.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

apt_install() {
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "setup: missing: $*; install it with your package manager (or run as root)" >&2
    return 1
  fi
  echo "setup: installing $* with apt" >&2
  apt-get install -y -qq "$@" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "$@" >/dev/null; }
}

python=""
for candidate in python3.11 python3 python3.12 python3.13; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  apt_install python3 python3-venv
  python=python3
fi
"$python" - <<'PY'
import sys
if sys.version_info[:2] != (3, 11):
    print(f"setup: Python {sys.version.split()[0]}: only 3.11 is tested", file=sys.stderr)
PY

if [ ! -x "$venv/bin/pip" ]; then
  rm -rf "$venv"
  "$python" -m venv "$venv" 2>/dev/null || { rm -rf "$venv"; apt_install python3-venv; "$python" -m venv "$venv"; }
fi

# pip prints nothing for minutes on a slow line: say what is happening.
echo "setup: installing Python packages ($lane) into $venv" >&2
"$venv/bin/python" -m pip install -q -U "pip>=25.1" # the first that knows dependency groups
if [ "$lane" = test ]; then
  # Exactly this build of torch, before anything that could pull another.
  "$venv/bin/pip" install -q "torch==2.13.0" numpy
  "$venv/bin/pip" install -q -c constraints.txt -e '.[server,inference,httpx]' --group dev
  command -v node >/dev/null && command -v npm >/dev/null || apt_install nodejs npm || [ "${CI:-}" != true ]
else
  "$venv/bin/pip" install -q -c constraints.txt -e '.[inference]' --group demo
fi
touch "$venv/.$lane-ready"
[ "$lane" != test ] || touch "$venv/.demo-ready"
