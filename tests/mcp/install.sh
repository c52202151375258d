#!/usr/bin/env bash
# Installs the MCP servers of package.json, pinned by its lock file, into target/mcp; does nothing when
# they are there. The tests call it themselves, several at a time.
#
# Prints the folder they are in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

kept=${CARGO_TARGET_DIR:-target}/mcp
mkdir -p "$kept" && kept=$(cd "$kept" && pwd)
exec 9>"$kept/.lock"
flock 9
want=$(cat tests/mcp/package.json tests/mcp/package-lock.json | cksum)
if [ "$(cat "$kept/.installed" 2>/dev/null)" != "$want" ]; then
  command -v npm >/dev/null || { echo "tests/mcp/install.sh: Node 20 or newer with npm is needed" >&2; exit 1; }
  rm -rf "$kept/.installed" "$kept/node_modules"
  cp tests/mcp/package.json tests/mcp/package-lock.json "$kept/"
  # Nothing is executed, and a registry that stumbles is asked again.
  install() { (cd "$kept" && npm ci --ignore-scripts --no-audit --no-fund --fetch-retries 5 >&2); }
  install || { sleep 10 && install; }
  echo "$want" >"$kept/.installed"
fi
echo "$kept"
