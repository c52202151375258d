#!/usr/bin/env bash
# Generates a TypeScript and a Python client from openapi.yaml, compiles both, and lets each complete
# a run against a real `stepwell serve`. The `stream_run` helpers of clients/ are tried against a
# server that breaks its streams, and used for the run.
#
#   tests/clients/run.sh            STEPWELL_BIN: the server to use instead of the one that is built
#
# Packages and generated code are kept in target/clients, so that a second time is quick and offline.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
exec </dev/null

here=tests/clients
target=${CARGO_TARGET_DIR:-target}
kept=$target/clients
work=$(mktemp -d "${TMPDIR:-/tmp}/stepwell-clients.XXXXXX") || exit 1
mkdir -p "$kept" && kept=$(cd "$kept" && pwd)
passed=0 failed=0
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# check NAME COMMAND…: one check, with its output only when it fails.
check() {
  local name=$1 began=$SECONDS
  shift
  if "$@" >"$work/check.log" 2>&1; then
    passed=$((passed + 1))
    echo "$name ... ok ($((SECONDS - began)) s)"
  else
    failed=$((failed + 1))
    echo "$name ... FAILED ($((SECONDS - began)) s)"
    sed 's/^/    /' "$work/check.log" | tail -n 80
    return 1
  fi
}

give_up() {
  echo "tests/clients/run.sh: $*" >&2
  echo "clients: $passed passed, $((failed + 1)) failed"
  exit 1
}

# --------------------------------------------------------------------------------- what is needed

node_is_new_enough() { node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 20 ? 0 : 1)' 2>/dev/null; }

apt_install() {
  [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
  local patient=(-qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
  again apt-get "${patient[@]}" update &&
    DEBIAN_FRONTEND=noninteractive apt-get "${patient[@]}" install -y --no-install-recommends "$@" >/dev/null
}

# again COMMAND…: a registry that stumbles is asked again, a little later.
again() {
  local try
  for try in 1 2 3; do
    "$@" && return 0
    sleep $((try * 5))
  done
  return 1
}

need() {
  node_is_new_enough && command -v npm >/dev/null || apt_install nodejs npm
  node_is_new_enough || give_up "Node 20 or newer is needed"
  command -v npm >/dev/null || give_up "npm is needed"
  python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3 python3-venv
  python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || give_up "Python 3.11 or newer with venv is needed"
}

# Installs again only when what is wanted has changed.
typescript_packages() (
  cd "$kept/typescript" || return 1
  local want
  want=$(cat package.json package-lock.json | cksum)
  [ "$(cat .installed 2>/dev/null)" = "$want" ] && return 0
  rm -f .installed
  again npm ci --ignore-scripts --no-audit --no-fund --fetch-retries 5 && echo "$want" >.installed
)

python_packages() {
  local want
  want=$(python3 --version | cat - "$here/python/requirements.txt" | cksum)
  [ "$(cat "$kept/venv/.installed" 2>/dev/null)" = "$want" ] && return 0
  rm -rf "$kept/venv"
  python3 -m venv "$kept/venv" &&
    again "$kept/venv/bin/pip" install --quiet --disable-pip-version-check --retries 5 \
      -r "$here/python/requirements.txt" &&
    echo "$want" >"$kept/venv/.installed"
}

# ------------------------------------------------------------------------------ servers to talk to

# first_line FILE: waits for the first line of a file that somebody writes.
first_line() {
  local try
  for try in $(seq 600); do
    [ -s "$1" ] && head -n 1 "$1" && return 0
    sleep 0.1
  done
  return 1
}

# Each helper gets a fake server of its own: it plays its faults once.
helper() {
  python3 -u "$here/fake_stream.py" >"$work/$1.port" &
  pids+=($!)
  local port
  port=$(first_line "$work/$1.port") || return 1
  shift
  "$@" "http://127.0.0.1:$port"
}

serve() {
  local bin=${STEPWELL_BIN:-} port try
  if [ -z "$bin" ]; then
    cargo build --locked --quiet --bin stepwell || return 1
    bin=$target/debug/stepwell
  fi
  bin=$(cd "$(dirname "$bin")" && pwd)/$(basename "$bin")
  for try in 1 2 3 4 5; do
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    mkdir -p "$work/server$try"
    (cd "$work/server$try" && exec "$bin" serve --listen "127.0.0.1:$port") >"$work/server.log" 2>&1 &
    pids+=($!)
    local server=$!
    for _ in $(seq 600); do
      kill -0 "$server" 2>/dev/null || break
      if STEPWELL_LISTEN=127.0.0.1:$port "$bin" healthcheck 2>/dev/null; then
        base_url=http://127.0.0.1:$port
        return 0
      fi
      sleep 0.1
    done
    echo "attempt $try on port $port failed:"
    tail -n 20 "$work/server.log"
  done
  return 1
}

# ------------------------------------------------------------------------------------------ checks

# In parentheses: those that change the folder do so for themselves.
generate_typescript() (
  cd "$kept/typescript" && rm -rf generated build &&
    node_modules/.bin/openapi-ts --file openapi-ts.config.mjs
)
compile_typescript() (cd "$kept/typescript" && node_modules/.bin/tsc --project .)
run_typescript() { node "$kept/typescript/build/$1.js" "$2"; }

generate_python() (
  cd "$kept/python" && rm -rf stepwell_client &&
    PATH=$kept/venv/bin:$PATH openapi-python-client generate --path "$kept/openapi.yaml" --meta none \
      --output-path stepwell_client --overwrite --fail-on-warning
)
compile_python() (
  cd "$kept/python" && "$kept/venv/bin/python" -W error -m compileall -q stepwell_client stream_run.py &&
    "$kept/venv/bin/python" -W error -c 'import stepwell_client, stepwell_client.models, stream_run'
)
run_python() { "$kept/venv/bin/python" "$kept/python/$1.py" "$2"; }

need
rm -rf "$kept/python" "$kept/typescript/build" "$kept"/typescript/*.ts
mkdir -p "$kept/typescript" "$kept/python"
cp "$here"/typescript/* clients/typescript/*.ts "$kept/typescript/"
cp "$here"/python/*.py clients/python/*.py "$kept/python/"
cp openapi.yaml "$kept/openapi.yaml" || give_up "there is no openapi.yaml"

base_url=''
check "the server starts" serve

if check "npm packages" typescript_packages; then
  if check "a TypeScript client is generated" generate_typescript &&
    check "it compiles strictly" compile_typescript; then
    check "stream_run.ts survives broken streams" helper ts run_typescript check_helper
    [ -z "$base_url" ] || check "the TypeScript client completes a run" run_typescript check_run "$base_url"
  fi
fi
if check "PyPI packages" python_packages; then
  if check "a Python client is generated" generate_python && check "it compiles" compile_python; then
    check "stream_run.py survives broken streams" helper py run_python check_helper
    [ -z "$base_url" ] || check "the Python client completes a run" run_python check_run "$base_url"
  fi
fi

if [ $failed -gt 0 ] && [ -s "$work/server.log" ]; then
  echo "the server's last words:"
  tail -n 20 "$work/server.log" | sed 's/^/    /'
fi
echo "clients: $passed passed, $failed failed"
[ $failed -eq 0 ]
