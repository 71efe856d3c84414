#!/usr/bin/env bash
# Prints the path of a Redis server: the one on PATH, else Debian's, unpacked into .cache.
source "$(dirname "$0")/fetch.sh"
name=Redis remedy="Install it from https://redis.io/docs/latest/operate/oss_and_stack/install"
command -v redis-server || fetched redis redis-server from_debian redis-server
