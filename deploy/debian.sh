#!/usr/bin/env bash
# debian.sh PROGRAM PACKAGE: prints the path of PROGRAM: the one on PATH, else that of Debian's
# PACKAGE, unpacked into .cache and not installed.
set -euo pipefail
program="$1" package="$2"
cd "$(dirname "$0")/.."

if command -v "$program"; then exit; fi

home="${AIFLOW_CACHE:-$PWD/.cache}/$package"
found() { find "$home" -type f -name "$program" -perm -u+x -print -quit 2>/dev/null; }
if [ -n "$(found)" ]; then
  found
  exit
fi

sorry() {
  echo "no $program: $1. Install the package $package, or put $program on PATH" >&2
  exit 1
}

command -v apt-get >/dev/null || sorry "it is not on PATH, and this system has no apt-get to fetch it with"
echo "fetching Debian's $package" >&2
mkdir -p "$(dirname "$home")"
fetched=$(mktemp -d "$home.XXXXXX")
trap 'rm -rf "$fetched"' EXIT
download() { (cd "$fetched" && apt-get -o APT::Sandbox::User=root -o Acquire::Retries=3 -qq download "$package" >&2); }
# The lists of packages may be missing or old.
download || { apt-get -qq update >&2 && download; } || sorry "its package could not be fetched"
dpkg -x "$fetched"/*.deb "$fetched/root"
# Moved in one piece: whoever looks meanwhile sees all of it or nothing.
mv -T "$fetched/root" "$home" 2>/dev/null || [ -n "$(found)" ]
found
