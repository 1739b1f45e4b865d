#!/usr/bin/env bash
# Builds both images with buildah and checks what they promise: run.sh BASE [BUILD-ARGUMENT=VALUE ...].
#   tests/container/base.sh debian-python && tests/container/run.sh debian-python ARCHS=sm_80
# Inside another container, or without user namespaces: BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs, as root.
# TESTS, a list of pytest arguments, replaces the short list below; TESTS="-n auto --dist worksteal" is the whole suite.
set -euo pipefail

base=${1:?usage: run.sh BASE [BUILD-ARGUMENT=VALUE ...]}
shift
repository=$(cd "$(dirname "$0")/../.." && pwd)
tests=${TESTS:-tests/test_cpu.py tests/test_models.py tests/cuda/test_compiler.py tests/kernels/test_direct.py}

step() { printf '\n== %s (%ds)\n' "$1" "$SECONDS"; }
fail() { echo "$1" >&2; exit 1; }

arguments=(--build-arg "BASE=$base")
for argument; do arguments+=(--build-arg "$argument"); done
build() { # target
    step "build $1"
    # The docker format: OCI's has no HEALTHCHECK.
    buildah build --format docker --target "$1" --tag "gpu-conv-$1" "${arguments[@]}" "$repository"
}

containers=()
trap 'for container in "${containers[@]}"; do buildah rm "$container" > /dev/null; done' EXIT
from() { # image; sets container
    container=$(buildah from "$1")
    containers+=("$container")
}
inside() { # without network but the loopback, on which workers of Dask meet: all that is needed is in the image
    unshare --net sh -c 'ip link set lo up && exec "$@"' sh buildah run "$container" -- "$@"
}
configured() { # Entrypoint, Cmd or Healthcheck.Test; sets words
    local list
    list=$(buildah inspect --format "{{range .Docker.Config.$1}}{{println .}}{{end}}" "$container")
    mapfile -t words < <(printf '%s\n' "$list" | sed '/^$/d')
}

build runtime
from gpu-conv-runtime
configured Entrypoint; entrypoint=("${words[@]}")
configured Cmd; command=("${words[@]}")
configured Healthcheck.Test; health=("${words[@]:1}") # the first word is CMD

step 'who runs'
[ "$(inside id -u)" != 0 ] || fail 'the image runs as root'
inside id

step "run: ${entrypoint[*]} ${command[*]}"
inside "${entrypoint[@]}" "${command[@]}"
answer=$(inside "${entrypoint[@]}" "${command[@]}" --json)
python3 - "$answer" << 'EOF'
import json, sys

tops = [picture["classes"][0]["label"] for picture in json.loads(sys.argv[1])["pictures"]]
assert len(tops) == 4 and tops[0] == "espresso" and "cat" in tops[1], tops
EOF

step "health: ${health[*]}"
inside "${health[@]}"

step 'the kernels are in the cache'
archs=$(buildah inspect --format '{{range .Docker.ContainerConfig.Env}}{{println .}}{{end}}' "$container" | sed -n 's/^ARCHS=//p')
for argument; do case $argument in ARCHS=*) archs=${argument#ARCHS=} ;; esac done
for arch in ${archs:-sm_80 sm_90a}; do
    compiled=$(inside gpu-conv warmup mobilenet_v2 --arch "$arch" --json | python3 -c 'import json, sys; facts = json.load(sys.stdin); print(len(facts["kernels"]), facts["compiled"])')
    echo "$arch: ${compiled% *} kernels, ${compiled#* } compiled now"
    [ "${compiled#* }" = 0 ] || fail "$arch: compiled again"
done

build test
from gpu-conv-test

step 'every version is pinned'
normal() { tr '[:upper:]_' '[:lower:]-' | sort; }
loose=$(inside pip freeze --exclude-editable | normal | comm -23 - <(normal < "$repository/constraints.txt"))
[ -z "$loose" ] || fail "not in constraints.txt: $loose"

configured Entrypoint
step "tests: ${words[*]} $tests"
# shellcheck disable=SC2086
inside "${words[@]}" $tests

step 'passed'
