#!/usr/bin/env bash
# Prints the path of a Consul agent: the one on PATH, else Debian's 1.8.7, unpacked into .cache.
# Bookworm has none, so it comes from bullseye, whose packages the system itself never sees.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v consul; then exit; fi

home="${AIFLOW_CACHE:-$PWD/.cache}/consul"
binary="$home/usr/bin/consul"
if [ -x "$binary" ]; then
  echo "$binary"
  exit
fi

sorry() {
  echo "no Consul: $1. Install it from https://developer.hashicorp.com/consul/install" >&2
  exit 1
}

command -v apt-get >/dev/null || sorry "it is not on PATH, and this system has no apt-get to fetch it with"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keys" ] || sorry "the keys of Debian's archive are not at $keys (package debian-archive-keyring)"

echo "fetching Consul from Debian's bullseye, about 15 MB" >&2
mkdir -p "$home"
fetched=$(mktemp -d "$home/fetch.XXXXXX")
trap 'rm -rf "$fetched"' EXIT
mkdir -p "$fetched/lists/partial" "$fetched/cache"
# apt drops its rights for downloads, into folders that only we may enter.
chmod 755 "$fetched"
cat > "$fetched/bullseye.list" <<LIST
deb [signed-by=$keys] http://deb.debian.org/debian bullseye main
LIST
options=(
  -o "Dir::Etc::sourcelist=$fetched/bullseye.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$fetched/lists" -o "Dir::Cache=$fetched/cache"
  -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
  -o APT::Sandbox::User=root -o Acquire::Retries=3 -o Acquire::Languages=none
)
(
  cd "$fetched"
  apt-get "${options[@]}" -qq update >&2 && apt-get "${options[@]}" -qq download consul >&2
) || sorry "its package could not be fetched"
dpkg -x "$fetched"/consul_*.deb "$fetched/root"
# Moved in one piece: whoever looks meanwhile sees all of it or nothing.
mkdir -p "$home/usr/bin"
mv -T "$fetched/root/usr/bin/consul" "$binary"
echo "$binary"
