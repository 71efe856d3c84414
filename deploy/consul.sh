#!/usr/bin/env bash
# Prints the path of a Consul agent: the one on PATH, else Debian's 1.8.7, unpacked into .cache.
# Bookworm has none, so it comes from bullseye, whose packages the system itself never sees.
source "$(dirname "$0")/fetch.sh"
name=Consul remedy="Install it from https://developer.hashicorp.com/consul/install"

from_bullseye() {
  local keys=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -r "$keys" ] || sorry "the keys of Debian's archive are not at $keys (package debian-archive-keyring)"
  sources="deb [signed-by=$keys] http://deb.debian.org/debian bullseye main"
  from_debian "$1"
}

command -v consul || fetched consul consul from_bullseye consul
