#!/usr/bin/env bash
# Writes requirements.lock from pyproject.toml: exact versions, no links, no index lines, torch without a local tag.
# What is locked stays as it is where it still fits; `scripts/lock.sh --upgrade` takes the newest of everything.
set -euo pipefail
cd "$(dirname "$0")/.."
cp requirements.lock requirements.lock.new # pip-compile keeps the versions it finds in its output
.venv/bin/pip-compile --quiet --all-extras --strip-extras --allow-unsafe --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
    --output-file requirements.lock.new pyproject.toml "$@"
{
    echo "# Made by 'make lock' from pyproject.toml; installs with plain pip."
    grep -vE '^(--|#|$)' requirements.lock.new | LC_ALL=C sort -t= -k1,1 | sed -E 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/'
} > requirements.lock.tmp
rm requirements.lock.new
mv requirements.lock.tmp requirements.lock
