#!/usr/bin/env bash
# Fails when the committed generated code is not what the .proto files give.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
deploy/protos.sh "$fresh" >/dev/null 2>&1
status=0
while IFS= read -r file; do
  cmp -s "$file" "$fresh/${file#protos/}" || { echo "out of date: $file (run: make protos)" >&2; status=1; }
done < <(find protos -name '*_pb2*.py*' -not -path '*/__pycache__/*' | sort)
[ "$(find protos -name '*_pb2*.py*' -not -path '*/__pycache__/*' | wc -l)" = "$(find "$fresh" -type f | wc -l)" ] ||
  { echo "a .proto has no generated code beside it (run: make protos)" >&2; status=1; }
[ $status = 0 ] && echo "generated code is up to date"
exit $status
