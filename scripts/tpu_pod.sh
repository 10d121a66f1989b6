#!/usr/bin/env bash
# Trains on a TPU pod slice from a queued resource, and goes on where it was when the slice comes back.
#
#   scripts/tpu_pod.sh NAME ZONE TYPE WORKDIR [arguments of launch.py]
#   scripts/tpu_pod.sh run1 us-central2-b v4-32 /mnt/shared/run1 --config=configs/mnist.py
#
# WORKDIR must be the same folder on every worker, such as a Filestore share.
set -euo pipefail
name=$1 zone=$2 type=$3 workdir=$4
shift 4
tpu() { gcloud compute tpus "$@" --zone="$zone"; }

tpu queued-resources describe "$name" > /dev/null 2>&1 ||
  tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="${RUNTIME:-tpu-ubuntu2204-base}"
until [ "$(tpu queued-resources describe "$name" --format='value(state.state)')" = ACTIVE ]; do sleep 30; done

tpu tpu-vm scp --recurse . "$name:flaxonomy" --worker=all
tpu tpu-vm ssh "$name" --worker=all --command="cd flaxonomy && python3 -m venv .venv &&
  .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"
# Every worker runs the same line. SIGTERM to one of them makes all save the same step and leave with code 143.
tpu tpu-vm ssh "$name" --worker=all \
  --command="cd flaxonomy && .venv/bin/python launch.py --distributed --workdir='$workdir' ${*:+$(printf '%q ' "$@")}"
