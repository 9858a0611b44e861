#!/usr/bin/env bash
# Installs the Debian packages of scripts/system-packages.txt that are missing. Needs root; quick when all are there.
#   scripts/system.sh               install, or fail with one sentence
#   scripts/system.sh --if-allowed  install when this user may, else say what is missing and go on
#   scripts/system.sh --list        print what is missing, one a line
set -euo pipefail
cd "$(dirname "$0")/.."

mode="${1:-}"
case "$mode" in "" | --if-allowed | --list) ;; *)
    echo "scripts/system.sh: unknown option $mode (known: --if-allowed, --list)" >&2
    exit 2
    ;;
esac

mapfile -t wanted < <(sed -E 's/[[:space:]]*#.*//; /^$/d' scripts/system-packages.txt)
missing=()
if command -v dpkg-query > /dev/null; then
    installed="$(dpkg-query -W -f '${Status} ${Package}\n' "${wanted[@]}" 2> /dev/null | sed -n 's/^install ok installed //p' || true)"
    for package in "${wanted[@]}"; do
        grep -qxF "$package" <<< "$installed" || missing+=("$package")
    done
else
    echo "scripts/system.sh: this is not Debian (no dpkg); install these yourself: ${wanted[*]}" >&2
    [ "$mode" = --if-allowed ] && exit 0 || exit 1
fi

if [ "$mode" = --list ]; then
    [ ${#missing[@]} -eq 0 ] || printf '%s\n' "${missing[@]}"
    exit 0
fi
[ ${#missing[@]} -gt 0 ] || exit 0

run=()
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
        run=(sudo -n)
    else
        echo "missing Debian packages: ${missing[*]}" >&2
        echo "install them with: sudo scripts/system.sh" >&2
        [ "$mode" = --if-allowed ] && exit 0 || exit 1
    fi
fi

echo "installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install_all() { "${run[@]}" apt-get install -y --no-install-recommends -q "${missing[@]}" > /dev/null; }
# The lists of a fresh machine are empty, those of an old one name versions that are gone.
if ! { "${run[@]}" apt-get update -q > /dev/null && install_all; }; then
    echo "apt-get could not install: ${missing[*]}" >&2
    echo "look at the lines above; then run: sudo scripts/system.sh" >&2
    [ "$mode" = --if-allowed ] && exit 0 || exit 1
fi
