#!/usr/bin/env bash
# A base image for machines that reach Debian's archive and pip's index but no image registry: base.sh NAME [SUITE].
# Certificates and pip's settings of the caller's environment become those of the base image; nothing else of it does.
set -euo pipefail

name=${1:?usage: base.sh NAME [SUITE]}
suite=${2:-bookworm}
bundle=/etc/ssl/certs/ca-certificates.crt

container=$(buildah from scratch)
trap 'buildah rm "$container" > /dev/null' EXIT
root=$(buildah mount "$container")
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
if [ -n "${SSL_CERT_FILE:-}" ]; then
    cp "$SSL_CERT_FILE" "$root$bundle"
    buildah config --env SSL_CERT_FILE=$bundle --env PIP_CERT=$bundle "$container"
fi
for variable in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT; do
    if [ -n "${!variable:-}" ]; then buildah config --env "$variable=${!variable}" "$container"; fi
done
buildah unmount "$container" > /dev/null
buildah commit "$container" "$name"
