#!/usr/bin/env bash
# Measures and tests everything that needs a GPU, in under eight minutes; README.md says how.
#   first_run.sh [PART ...]    of: card warm tests sanitize clusters sizes head logits
# Each part has a limit of its own, and none stops the others. Without a GPU this is a rehearsal.
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
cd "$here/../.." || exit 1
OUT=${OUT:-$here/out}
TOTAL=${TOTAL:-450} # seconds
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=$scratch/triton
PYTHON=${PYTHON:-python3}

wheels=$(ls "$here"/built/*.whl 2>/dev/null)
if [ -n "$wheels" ]; then # unpacked here, because nothing may be installed on that machine
    # shellcheck disable=SC2086
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$scratch/site" $wheels
fi
export PYTHONPATH=$PWD/src:$scratch/site:${PYTHONPATH:-}

if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    wanted=${*:-card warm tests sanitize clusters sizes head logits}
    jobs=8
    logits=(--repeats 8 --seconds 95 --contestants xent xent-by-row torch liger --launches 4096,1000
        --shapes 8192,128256 2097152,100 262144,1000 65536,4096 8192,32000)
else
    wanted=${*:-card warm tests sizes head logits}
    jobs=0
    logits=(--repeats 1 --interpret --contestants xent xent-by-row torch --launches 2,20 --shapes 2,20)
    echo "NO GPU: A REHEARSAL IN TRITON'S INTERPRETER"
fi
failed=0
part() { # name, seconds, command...
    local name=$1 limit=$2 left=$((TOTAL - SECONDS)) code
    shift 2
    [[ " $wanted " == *" $name "* ]] || return 0
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -lt 10 ]; then
        echo "== $name: no time left"
        failed=1
        return
    fi
    echo "== $name (at $SECONDS s, at most $limit s)"
    timeout -k 5 "$limit" "$@" >"$OUT/$name.txt" 2>&1
    code=$?
    tail -n 40 "$OUT/$name.txt"
    echo "== $name: code $code"
    [ "$code" -eq 0 ] || failed=1
}

part card 40 "$PYTHON" -m benchmarks.gpu.card
part warm 60 "$PYTHON" -m benchmarks.gpu.kernels warm
part tests 110 "$PYTHON" -m pytest -q -n "$jobs" -p no:cacheprovider -W ignore::UserWarning \
    tests/engines/triton/test_gpu.py -k "not inductor"
part sanitize 45 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$PYTHON" -m benchmarks.gpu.kernels once
part clusters 25 "$PYTHON" -m benchmarks.gpu.clusters run
part sizes 90 "$PYTHON" -m benchmarks.gpu.kernels sizes
part head 90 "$PYTHON" -m benchmarks.gpu.head --seconds 80 --json "$OUT/head.json"
part logits 120 "$PYTHON" -m benchmarks.gpu.logits --quiet --json "$OUT/logits.json" "${logits[@]}"
echo "== all: $SECONDS s"
exit $failed
