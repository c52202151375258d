#!/usr/bin/env bash
# Checks everything there is to check, and says in the end whether all is well.
#
#   tests/run.sh                    format, lints, docs, all tests on SQLite and Postgres, generated clients
#   tests/run.sh --no-clients       without the generated clients, schemathesis and the reference MCP server
#                                   (no Node, no npm, no PyPI)
#   tests/run.sh --only FILTER      only the Rust tests whose name contains FILTER
#   tests/run.sh --full             the crash tests in their long versions (hours, not minutes)
#
# The crash tests (tests/it/crash, and tests/it/edge for clients) measure seconds, so they run after
# all others and two at a time; what they did and found is shown as a table. Run it as root: they
# mount small disks, to fill them.
#
# It installs PostgreSQL, strace and openssl with apt if they are not there, and starts a throw-away cluster of its own in a
# temporary folder, with default durability. STEPWELL_TEST_POSTGRES_URL, if set, is used instead: an
# account on it must be able to create databases.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
exec </dev/null

clients=yes only='' full=no
while [ $# -gt 0 ]; do
  case $1 in
    --no-clients) clients=no ;;
    --only) only=${2:?--only needs a filter}; shift ;;
    --full) full=yes ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "tests/run.sh: unknown argument $1; try --help" >&2; exit 2 ;;
  esac
  shift
done

work=$(mktemp -d "${TMPDIR:-/tmp}/stepwell-tests.XXXXXX") || exit 1
passed=0 failed=0 broken=()
cluster='' pg_bin='' pg_owner=''

# ---------------------------------------------------------------------------------------- the frame

say() { printf '\n==> %s\n' "$*"; }

# step NAME COMMAND…: runs it, shows what it shows, counts it as one check.
step() {
  local name=$1 began=$SECONDS
  shift
  say "$name"
  if "$@"; then
    passed=$((passed + 1))
    echo "==> $name: ok ($((SECONDS - began)) s)"
  else
    local code=$?
    failed=$((failed + 1)) broken+=("$name")
    echo "==> $name: FAILED with exit code $code ($((SECONDS - began)) s)"
    return 1
  fi
}

# counted NAME COMMAND…: the same for what counts for itself, by lines of "N passed; N failed".
counted() {
  local name=$1 began=$SECONDS code=0 sums
  shift
  say "$name"
  "$@" 2>&1 | tee "$work/counted.log" || code=1
  sums=$(sed -nE 's/.*[^0-9]([0-9]+) passed[;,] ([0-9]+) failed.*/\1 \2/p' "$work/counted.log" |
    awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
  local p=${sums% *} f=${sums#* }
  passed=$((passed + p)) failed=$((failed + f))
  if [ $code -eq 0 ] && [ "$f" -eq 0 ] && [ "$p" -gt 0 ]; then
    echo "==> $name: ok, $p passed ($((SECONDS - began)) s)"
    return 0
  fi
  # Broken without a failed test: it did not build, was stopped, or found no test at all.
  [ "$f" -gt 0 ] || failed=$((failed + 1))
  broken+=("$name")
  echo "==> $name: FAILED, $p passed, $f failed ($((SECONDS - began)) s)"
  return 1
}

cleanup() {
  if [ -n "$cluster" ]; then
    as_owner "$pg_bin/pg_ctl" -D "$cluster" -m immediate -w stop >/dev/null 2>&1
  fi
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ----------------------------------------------------------------------------------------- Postgres

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else
    echo "tests/run.sh: \"$*\" needs root: run it yourself, or run this as root" >&2
    return 1
  fi
}

# Postgres refuses to run as root.
as_owner() {
  if [ "$(id -u)" -eq 0 ]; then (cd / && runuser -u "$pg_owner" -- "$@"); else "$@"; fi
}

find_postgres() {
  local bin
  # Debian keeps it out of PATH; the newest wins.
  for bin in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV) \
    "$(dirname "$(command -v initdb || echo /nowhere/initdb)")" \
    "$(pg_config --bindir 2>/dev/null || true)" /opt/homebrew/opt/postgresql*/bin; do
    if [ -x "$bin/initdb" ] && [ -x "$bin/pg_ctl" ] && [ -x "$bin/postgres" ]; then
      pg_bin=$bin
      return 0
    fi
  done
  return 1
}

# A mirror that stumbles is asked again; and whoever else installs something just now is waited for.
apt() {
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 "$@"
}
apt_update() { apt update || { sleep 10 && apt update; }; }
apt_install() { apt install -y --no-install-recommends "$@" >/dev/null; }

install_postgres() {
  command -v apt-get >/dev/null || {
    echo "tests/run.sh: no initdb found and no apt-get: install PostgreSQL 14 or newer" >&2
    return 1
  }
  # The package would make a cluster of its own, which nobody here wants.
  apt_update && apt_install postgresql-common &&
    as_root sed -ri 's/^#?(create_main_cluster) .*$/\1 = false/' /etc/postgresql-common/createcluster.conf &&
    apt_install postgresql &&
    find_postgres
}

# install_tool NAME: of a command whose package has the same name.
install_tool() {
  command -v "$1" && return 0
  command -v apt-get >/dev/null || {
    echo "tests/run.sh: no $1 found and no apt-get: install $1" >&2
    return 1
  }
  apt_update && apt_install "$1"
}

start_postgres() {
  if [ -n "${STEPWELL_TEST_POSTGRES_URL:-}" ]; then
    echo "using STEPWELL_TEST_POSTGRES_URL"
    return 0
  fi
  find_postgres || install_postgres || return 1
  "$pg_bin/postgres" --version

  local data=$work/postgres port try locale=(--locale=C.UTF-8)
  mkdir "$data"
  if [ "$(id -u)" -eq 0 ]; then
    pg_owner=postgres
    id "$pg_owner" >/dev/null 2>&1 || pg_owner=nobody
    chown "$pg_owner" "$data"
    chmod 711 "$work"
  fi
  # An order of text that is not the order of bytes, as in production: it shows a forgotten COLLATE "C".
  if "$pg_bin/initdb" --help | grep -q -- --icu-locale; then
    locale+=(--locale-provider=icu --icu-locale=en-US)
  fi
  as_owner "$pg_bin/initdb" -D "$data/data" -U postgres -A trust -E UTF8 "${locale[@]}" >"$work/initdb.log" 2>&1 || {
    cat "$work/initdb.log"
    return 1
  }
  for try in 1 2 3 4 5 6 7 8; do
    # Below the ports that the kernel gives away itself.
    port=$((20000 + RANDOM % 12000))
    if as_owner "$pg_bin/pg_ctl" -D "$data/data" -l "$data/log" -w -t 60 -o \
      "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=$data -c max_connections=300" \
      start >/dev/null; then
      cluster=$data/data
      export STEPWELL_TEST_POSTGRES_URL="postgres://postgres@127.0.0.1:$port/postgres"
      echo "$STEPWELL_TEST_POSTGRES_URL"
      return 0
    fi
    echo "attempt $try on port $port failed"
  done
  tail -n 20 "$data/log"
  return 1
}

# -------------------------------------------------------------------------------------------- steps

# All steps share one set of RUSTFLAGS: changing them would build every dependency anew.
docs() {
  # Private items are documented too, so links to them are fine.
  RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
    cargo doc --locked --no-deps --document-private-items --quiet
}
lints() { cargo clippy --locked --all-targets --quiet -- -D warnings; }

# The tests that --only leaves, one a line: those of the crash suite, or all others.
crashing='^(crash|edge|poison|engine::interleavings)::'
list_tests() {
  cargo test --locked --quiet ${only:+"$only"} -- --list 2>/dev/null | sed -n 's/: test$//p' |
    if [ "$1" = crash ]; then grep -E "$crashing"; else grep -vE "$crashing"; fi
}

# What each crash test did and found (tests/it/support/profile.rs writes it).
export STEPWELL_TEST_REPORT=$work/report.tsv
crash_report() {
  [ -f "$STEPWELL_TEST_REPORT" ] || return 0
  say "crash tests: what was done, and what came of it"
  {
    printf 'promise\twhat\tdatabase\tfaults\tbit\tchecks\tviolations\tseconds\tnotes\n'
    sort -V "$STEPWELL_TEST_REPORT"
  } | column -t -s "$(printf '\t')"
}

say "Stepwell: $(cargo --version), $(nproc 2>/dev/null || echo '?') cores, $(git rev-parse --short HEAD 2>/dev/null || echo 'no git')"
[ $full = no ] || export STEPWELL_TEST_FULL=1

step "postgres" start_postgres
step "strace" install_tool strace
step "openssl" install_tool openssl
# The tests would install it themselves; here it shows if that fails.
[ $clients = no ] || step "reference MCP server" tests/mcp/install.sh
if [ -z "$only" ]; then
  step "format" cargo fmt --check
  step "lints" lints
  step "docs" docs
fi
# Built apart, so that the time of the tests is that of the tests.
if step "build" cargo test --locked --no-run --quiet; then
  # A hanging test must not hang the machine: far longer than all of them take. Where somebody may
  # press Ctrl-C, it must reach cargo; elsewhere the whole group of processes is ended.
  [ -n "${CI:-}" ] && foreground='' || foreground=--foreground
  crash_tests=$(list_tests crash)
  if [ -z "$crash_tests" ] || [ -n "$(list_tests others)" ]; then
    # By their whole names: a part of one is a part of others too (config::edge).
    # shellcheck disable=SC2046,SC2086
    counted "tests" timeout $foreground -k 10 3600 \
      cargo test --locked --no-fail-fast ${only:+"$only"} -- ${crash_tests:+$(printf -- '--skip %s ' $crash_tests)} \
      $([ $clients = yes ] || echo --skip mcp::reference)
  fi
  if [ -n "$crash_tests" ]; then
    [ $full = no ] && patience=3600 || patience=28800
    # By their names: several filters mean any of them, not all.
    # shellcheck disable=SC2086
    counted "crash tests" timeout $foreground -k 10 $patience \
      cargo test --locked --test it -- --exact --test-threads 2 $crash_tests
    crash_report
  fi
  if [ -z "$only" ] && [ $clients = yes ]; then
    counted "clients" tests/clients/run.sh
    step "made-up requests" tests/fuzz/run.sh
  fi
fi

# ------------------------------------------------------------------------------------------ verdict

minutes=$((SECONDS / 60)) seconds=$((SECONDS % 60))
if [ "$failed" -eq 0 ]; then
  say "ALL IS WELL, in $minutes min $seconds s"
else
  say "NOT WELL, in $minutes min $seconds s: ${broken[*]}"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
