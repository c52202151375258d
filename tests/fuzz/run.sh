#!/usr/bin/env bash
# P31: schemathesis makes up requests from openapi.yaml, good and bad, and sends them to a real server.
# No answer may be a 5xx, and each must be one that the spec knows: its status, media type and shape.
#
#   tests/fuzz/run.sh            STEPWELL_BIN: the server to use instead of the one that is built
#
# The seed is fixed, so that CI tries the same twice; FUZZ_SEED is another one, FUZZ_EXAMPLES and
# FUZZ_SECONDS (after which it is broken off, and fails) make it longer. Packages are kept in target/fuzz, so that a second time is quick.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
exec </dev/null

here=$PWD/tests/fuzz spec=$PWD/openapi.yaml
target=${CARGO_TARGET_DIR:-target}
seed=${FUZZ_SEED:-20261122} examples=${FUZZ_EXAMPLES:-25} seconds=${FUZZ_SECONDS:-900}
mkdir -p "$target/fuzz" && kept=$(cd "$target/fuzz" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/stepwell-fuzz.XXXXXX") || exit 1
server=''
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; wait 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

give_up() {
  echo "tests/fuzz/run.sh: $*" >&2
  [ ! -s "$work/server.log" ] || tail -n 20 "$work/server.log" >&2
  exit 1
}

packages() {
  local want
  want=$(python3 --version | cat - "$here/requirements.txt" | cksum)
  [ "$(cat "$kept/venv/.installed" 2>/dev/null)" = "$want" ] && return 0
  rm -rf "$kept/venv"
  python3 -m venv "$kept/venv" &&
    { install || { sleep 10 && install; }; } &&
    echo "$want" >"$kept/venv/.installed"
}

# A registry that stumbles is asked again.
install() {
  "$kept/venv/bin/pip" install --quiet --disable-pip-version-check --retries 5 -r "$here/requirements.txt"
}

# An agent of the file is read-only, so it stays what it is; its runs end at once.
serve() {
  printf 'agents:\n  fuzzed: { model: builtin/echo }\n' >"$work/stepwell.yaml"
  (cd "$work" && exec "$bin" serve --listen 127.0.0.1:0 --config stepwell.yaml) 2>"$work/server.log" &
  server=$!
  local try
  for try in $(seq 600); do
    base_url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$work/server.log" | head -n 1)
    [ -n "$base_url" ] && return 0
    kill -0 "$server" 2>/dev/null || return 1
    sleep 0.1
  done
  return 1
}

bin=${STEPWELL_BIN:-}
if [ -z "$bin" ]; then
  cargo build --locked --quiet --bin stepwell || give_up "the server does not build"
  bin=$target/debug/stepwell
fi
bin=$(cd "$(dirname "$bin")" && pwd)/$(basename "$bin")
packages || give_up "the packages of requirements.txt cannot be installed"
base_url=''
serve || give_up "the server does not start"

export FUZZ_AGENT_ID=fuzzed
FUZZ_RUN_ID=$(python3 - "$base_url/v1/agents/fuzzed/runs?wait=10" <<'PYTHON'
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], b'{"input":"x"}', {"content-type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60))["run_id"])
PYTHON
) || give_up "no run can be made"
export FUZZ_RUN_ID SCHEMATHESIS_HOOKS=hooks

# A stream of a run that was made up from a script may last: then it is broken off.
(cd "$work" && PYTHONPATH=$here timeout -k 5 "$seconds" "$kept/venv/bin/schemathesis" run "$spec" --url "$base_url" \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
  --phases examples,coverage,fuzzing --max-examples "$examples" --seed "$seed" \
  --request-timeout 20 --warnings off --no-color)
code=$?
kill -0 "$server" 2>/dev/null || give_up "the server is gone"
! grep -q panicked "$work/server.log" || give_up "the server panicked"
exit $code
