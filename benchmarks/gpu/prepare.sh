#!/usr/bin/env bash
# Writes what a machine without network needs into built/: wheels of peers, code of clusters.
#   prepare.sh    with Python 3.11 or later, Triton 3.8 or later and the package index at hand
cd "$(dirname "$(readlink -f "$0")")" || exit 1
PYTHON=${PYTHON:-python3}
mkdir -p built
"$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version "${TARGET:-3.12}" \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -d built \
    liger-kernel==0.8.5 cut-cross-entropy==25.1.1 expecttest==0.3.0 || exit 1
cd ../.. && PYTHONPATH=src "$PYTHON" -m benchmarks.gpu.clusters compile && du -sh benchmarks/gpu/built
