#!/usr/bin/env bash
# debian.sh PROGRAM PACKAGE [OPTION]: prints the path of PROGRAM: the one on PATH, else that of
# Debian's PACKAGE, unpacked into .cache and not installed. OPTION makes it say its version
# (--version), by which it is tried.
source "$(dirname "$0")/fetch.sh"
name="$1" version="${3:---version}" remedy="Install the package $2, or put $1 on PATH"
command -v "$1" || fetched "$2" "$1" from_debian "$2"
