#!/bin/sh
# Pins the clients that the contract tests drive anew, at the latest versions that tests/clients/*.in and package.json
# allow. No file names the place a package came from, so that any registry or mirror will do.
set -eu
cd "$(dirname "$0")/../tests/clients"

for kind in sdks frameworks; do
    ../../.venv/bin/uv --system-certs pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
        --upgrade requirements-$kind.in --output-file requirements-$kind.lock
done

rm -f package-lock.json
npm install --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts --no-audit --no-fund --loglevel=error
if grep -q '"resolved"' package-lock.json; then
    echo "package-lock.json names where packages came from; this npm is too old to leave that out." >&2
    exit 1
fi
