#!/usr/bin/env bash
# Generates the Python code beside each .proto: messages, typings, stubs.
# The version of grpcio-tools is pinned in pyproject.toml, so that the result is
# the same everywhere; `make lint` fails when it differs from what is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-protos}
mkdir -p "$out"
PATH="$PWD/.venv/bin:$PATH"
mapfile -t files < <(find protos -name '*.proto' | sort)
python -m grpc_tools.protoc -Iprotos \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
  "${files[@]}"
