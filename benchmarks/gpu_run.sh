#!/usr/bin/env bash
# Everything that needs a GPU, in parts that can be repeated one by one; results go into the folder that is given.
#
#   benchmarks/gpu_run.sh OUT [warm calibrate tests sanitize conformance bench nets decoders peers tiles]
#
# Needs python3 with CuPy 14.2, NVRTC (cuda-bindings), pytest and, for the peers, PyTorch; compute-sanitizer on the PATH.
# Nothing is installed. A failing part does not stop the others; the exit status counts the failed ones.
set -uo pipefail

out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
parts=${*:-warm calibrate tests sanitize conformance bench nets decoders}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export GPU_CONV_CACHE="${GPU_CONV_CACHE:-$(mktemp -d)}"
failed=0

warm() { timeout 150 python3 -m tests.gpu.sweep warm; }

calibrate() { timeout 120 python3 benchmarks/calibrate.py --output "$out/calibration.json"; }

tests() {
    timeout 240 python3 -m pytest -p no:cacheprovider -p no:benchmark -m gpu tests/gpu -n 6 -q --junitxml="$out/tests.xml" | tail -n 60
}

# One part of the corpus per tool: together they see three quarters of it, each in about a minute.
sanitize() {
    local tool offset=0 status=0
    local -A jobs
    for tool in memcheck racecheck initcheck synccheck; do
        timeout 200 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 40 \
            python3 -m tests.gpu.sweep run --every 5 --offset $offset >"$out/sanitize-$tool.log" 2>&1 &
        jobs[$tool]=$!
        offset=$((offset + 1))
    done
    for tool in "${!jobs[@]}"; do
        wait "${jobs[$tool]}" || { status=1 && echo "compute-sanitizer $tool failed"; }
        tail -n 3 "$out/sanitize-$tool.log"
    done
    return $status
}

conformance() {
    local runner=${CONFORMANCE:-../shared/conformance}
    [ -d "$runner" ] || { echo "no conformance suites in $runner" && return 0; }
    # The two WebNN validation suites need no device: only the suites with numbers.
    timeout 200 python3 "$runner/run.py" --device cuda $(cd "$runner/corpus" && basename -s .json -- *.json)
}

bench() {
    local calibration=()
    [ -f "$out/calibration.json" ] && calibration=(--calibration "$out/calibration.json")
    timeout "${BENCH_SECONDS:-280}" python3 benchmarks/bench.py --output "$out/layers.json" \
        --budget "$((${BENCH_SECONDS:-280} - 30))" "${calibration[@]}" ${BENCH_OPTIONS:-}
}

nets() { timeout 240 python3 benchmarks/nets.py --compile --output "$out/nets.json"; }

# Transposed convolutions beside ordinary ones with as many products.
decoders() { timeout 60 python3 benchmarks/decoders.py --batch 16 --output "$out/decoders.json"; }

# torch.compile and JAX compile each layer anew, so the usual bench leaves them out.
peers() {
    XLA_PYTHON_CLIENT_PREALLOCATE=false timeout 280 python3 benchmarks/bench.py --output "$out/peers.json" --budget 250 \
        --dtypes float16 --layouts nhwc --peers torch_nhwc torch_compile_nhwc jax_nhwc torch_matmul cupy_matmul
}

# 6,000 kernels and tiles: half of the time is their compilation.
tiles() { timeout 400 python3 benchmarks/tiles.py --output "$out/tiles.jsonl" --budget 250; }

for part in $parts; do
    start=$SECONDS
    echo "== $part"
    "$part" 2>&1 || { failed=$((failed + 1)) && echo "== $part FAILED"; }
    echo "== $part: $((SECONDS - start)) s"
done
exit "$failed"
