#!/bin/sh
# Prometheus reads a token from a file only.
set -eu
umask 077
printf '%s' "$VIEWER_TOKEN" >/tmp/viewer-token
exec prometheus --config.file=/compose/prometheus.yml --storage.tsdb.path=/prometheus
