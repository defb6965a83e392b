#!/usr/bin/env bash
# A TPU slice by its virtual machines, without Kubernetes. From any machine with gcloud:
#   scripts/launch/tpu_vm.sh NAME ZONE install                          this repository and its packages, on every host
#   scripts/launch/tpu_vm.sh NAME ZONE start --config configs/t0_3b.yaml --mesh.fsdp 16 --train.output_dir /shared/runs/t0_3b
#   scripts/launch/tpu_vm.sh NAME ZONE log                              the first host's, as it grows
#   scripts/launch/tpu_vm.sh NAME ZONE stop                             SIGTERM: all processes save, then exit
# The run folder and the data must lie on a disk that all hosts mount at SHARED (a Filestore share, /shared by default).
# Slices of one host need none. PYTHON names an interpreter of 3.11 or newer on the hosts (Ubuntu 22.04 has 3.10).
#
# Restarting: `start` ends what is left of an earlier start and goes on from the newest whole checkpoint; after a crash,
# a lost host or `stop`, give it again with the same options. A spot slice that was taken away must be created anew
# first (gcloud compute tpus queued-resources create), then `install` and `start`.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
fi
name="$1" zone="$2" action="$3"
shift 3
repository="${REPOSITORY:-$(git config --get remote.origin.url || true)}"
shared="${SHARED:-/shared}"
python="${PYTHON:-python3}"

# Asynchronous all-gathers are on by default; this makes the all-reduces of gradients so. For several slices:
# --xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true
flags="${LIBTPU_INIT_ARGS:---xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true}"

on() { # WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

# The process that `start` left behind on a host, also the number of its process group; a reboot forgets it.
pid=/dev/shm/t0jax.pid

case "$action" in
  install)
    on all "set -e; [ -d t0jax ] || git clone $(printf %q "$repository") t0jax; cd t0jax; git pull --ff-only
      $python -m venv .venv; .venv/bin/pip install --quiet --editable . 'jax[tpu]'"
    ;;
  start)
    # What an earlier start left may hold the chips: its process, that one's children, libtpu's lock.
    on all "[ ! -e $pid ] || kill -KILL -- -\$(cat $pid) 2> /dev/null; rm -f $pid; sudo rm -f /tmp/libtpu_lockfile"
    # T0JAX_CLUSTER: the hosts find each other through the metadata server.
    on all "cd t0jax; source .venv/bin/activate
      export T0JAX_CLUSTER=1 T0JAX_DATA_DIR=$shared/data T0JAX_COMPILE_CACHE=$shared/programs
      export LIBTPU_INIT_ARGS=$(printf %q "$flags")
      setsid nohup python -m scripts.train $(printf '%q ' "$@")>> t0jax.log 2>&1 < /dev/null &
      echo \$! > $pid"
    ;;
  log)
    on 0 "tail -n 100 -F t0jax/t0jax.log"
    ;;
  stop)
    on all "kill -TERM \$(cat $pid); while kill -0 \$(cat $pid) 2> /dev/null; do sleep 1; done"
    ;;
  *)
    echo "unknown action '$action'; one of install, start, log, stop" >&2
    exit 2
    ;;
esac
