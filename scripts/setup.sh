#!/usr/bin/env bash
# Set up a fresh Debian machine for `make demo`, `make test` or `make test-browser`: virtual environment, Python
# packages, and as root what the tests drive from outside (Node for the npm packages; for the browser lane Chromium,
# too; for the attesters' tests a software TPM and FUSE; gocryptfs to be measured against; for the broker's a software
# HSM and PostgreSQL; for federations tshark). Idempotent; quick the second time.
set -euo pipefail
cd "$(dirname "$0")/.."
lane=${1:?usage: scripts/setup.sh demo|test|browser}
venv=.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore DEBIAN_FRONTEND=noninteractive

say() { echo "setup: $*" >&2; }

apt_install() {
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    say "missing: $*. Install it (Debian: sudo apt-get install $*), then run make again"
    return 1
  fi
  say "installing $* with apt"
  apt-get install -y -qq "$@" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "$@" >/dev/null; }
}

find_python() {
  for candidate in python3.11 python3 python3.12 python3.13; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then
      echo "$candidate"
      return
    fi
  done
}

make_venv() {
  # Without Debian's python3-venv this fails halfway, for want of ensurepip: leave nothing half made.
  "$python" -m venv "$venv" >/dev/null 2>&1 || { rm -rf "$venv"; return 1; }
}

python=$(find_python)
if [ -z "$python" ] && ! command -v python3 >/dev/null; then
  apt_install python3 python3-venv
  python=$(find_python)
fi
if [ -z "$python" ]; then
  say "Python 3.11 is needed (Debian 12 has it), and here is $(python3 --version 2>&1)"
  exit 1
fi
version=$("$python" -c 'import platform; print(platform.python_version())')
case $version in 3.11.*) ;; *) say "Python $version: only 3.11 is tested" ;; esac

# The programs in a virtual environment name its folder, so one that was moved or copied is made again.
here=$(pwd -P)
if ! grep -qsF "$here/$venv/bin/python" "$venv/bin/pip" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  rm -rf "$venv"
  if ! make_venv; then
    apt_install python3-venv
    make_venv || { say "'$python -m venv' fails, although python3-venv is installed: is $python another Python?"; exit 1; }
  fi
fi

# What the tests drive from outside.
system_packages() {
  if ! { command -v node && command -v npm; } >/dev/null && ! apt_install nodejs npm; then
    [ "${CI:-}" != true ] || exit 1
    say "going on without: the tests that need them are skipped"
  fi
  if ! { command -v swtpm && command -v swtpm_setup && command -v tpm2_readpublic &&
    command -v certtool && command -v fusermount3 && command -v gocryptfs; } >/dev/null &&
    ! apt_install --no-install-recommends swtpm swtpm-tools tpm2-tools gnutls-bin fuse3 gocryptfs; then
    [ "${CI:-}" != true ] || exit 1
    say "going on without: the tests that need them are skipped"
  fi
  if ! { command -v softhsm2-util && ls /usr/lib/postgresql/*/bin/postgres; } >/dev/null 2>&1 &&
    ! apt_install --no-install-recommends softhsm2 postgresql; then
    [ "${CI:-}" != true ] || exit 1
    say "going on without: the tests that need them are skipped"
  fi
  if ! { command -v tshark && command -v ip; } >/dev/null && ! apt_install --no-install-recommends tshark iproute2; then
    [ "${CI:-}" != true ] || exit 1
    say "going on without: the tests that need them are skipped"
  fi
  if [ "$lane" = browser ] && ! command -v chromium >/dev/null && ! apt_install --no-install-recommends chromium; then
    [ "${CI:-}" != true ] || exit 1
    say "going on without: the tests that need it are skipped"
  fi
}

# pip prints nothing for minutes on a slow line: say what is happening.
say "installing Python packages ($lane) into $venv; minutes the first time on a slow line"
"$venv/bin/python" -m pip install -q -U "pip>=25.1" # the first that knows dependency groups
if [ "$lane" != demo ]; then
  system_packages &
  system=$!
  # Exactly this build of torch, before anything that could pull another.
  "$venv/bin/python" -m pip install -q "torch==2.13.0" numpy
  "$venv/bin/python" -m pip install -q -c constraints.txt -e '.[server,inference,broker,run,postgres,hsm,kmip,vault,aws,azure,gcp,httpx,nvidia,train,torch,openvino,optimize,federated,knowledge,pgvector]' --group dev
  wait "$system"
else
  "$venv/bin/python" -m pip install -q -c constraints.txt -e '.[inference,broker,run]' --group demo
fi
echo "$here" >"$venv/.made-at"
touch "$venv/.$lane-ready"
# Each lane has what the one before it has.
[ "$lane" = demo ] || touch "$venv/.demo-ready" "$venv/.test-ready"
