#!/usr/bin/env bash
# Prints the path of a Redis server: the one on PATH, else Debian's, unpacked into .cache.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v redis-server; then exit; fi

home="${AIFLOW_CACHE:-$PWD/.cache}/redis"
binary="$home/redis-server"
if [ -x "$binary" ]; then
  echo "$binary"
  exit
fi

sorry() {
  echo "no Redis: $1. Install it from https://redis.io/docs/latest/operate/oss_and_stack/install" >&2
  exit 1
}

command -v apt-get >/dev/null || sorry "it is not on PATH, and this system has no apt-get to fetch it with"

echo "fetching Redis from Debian, about 2 MB beside the lists of packages" >&2
mkdir -p "$home"
fetched=$(mktemp -d "$home/fetch.XXXXXX")
trap 'rm -rf "$fetched"' EXIT
mkdir -p "$fetched/lists/partial" "$fetched/cache"
# Lists of its own: the system's may be old, or missing. apt drops its rights for downloads, into
# folders that only we may enter.
options=(
  -o "Dir::State::lists=$fetched/lists" -o "Dir::Cache=$fetched/cache"
  -o APT::Sandbox::User=root -o Acquire::Retries=3 -o Acquire::Languages=none
)
# The server is in redis-tools; the rest is what it links to and a small system lacks.
(
  cd "$fetched"
  apt-get "${options[@]}" -qq update >&2 \
    && apt-get "${options[@]}" -qq download redis-tools libjemalloc2 liblzf1 libatomic1 >&2
) || sorry "its packages could not be fetched"
for package in "$fetched"/*.deb; do dpkg -x "$package" "$fetched/root"; done
libraries=$(dirname "$(find "$fetched/root" -name 'liblzf.so.1')")
mkdir -p "$home/lib"
cp -L "$libraries"/*.so.[0-9] "$home/lib/"
# One program under several names does what its name says.
mv -T "$fetched/root/usr/bin/redis-check-rdb" "$home/server"
LD_LIBRARY_PATH="$home/lib" "$home/server" --version >&2 || sorry "what was fetched does not run here"
cat > "$fetched/redis-server" <<'RUN'
#!/bin/sh
here=$(dirname "$0")
LD_LIBRARY_PATH="$here/lib" exec "$here/server" "$@"
RUN
chmod +x "$fetched/redis-server"
# Last and in one piece: whoever looks meanwhile sees all of it or nothing.
mv -T "$fetched/redis-server" "$binary"
echo "$binary"
