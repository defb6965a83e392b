#!/usr/bin/env bash
# A TPU slice by its virtual machines, without Kubernetes. From any machine with gcloud:
#   scripts/launch/tpu_vm.sh NAME ZONE install                          this repository and its packages, on every host
#   scripts/launch/tpu_vm.sh NAME ZONE start --config configs/t0_3b.yaml --mesh.fsdp 16 --train.output_dir /shared/runs/t0_3b
#   scripts/launch/tpu_vm.sh NAME ZONE log                              the first host's, as it grows
#   scripts/launch/tpu_vm.sh NAME ZONE stop                             SIGTERM: all processes save, then exit
#   scripts/launch/tpu_vm.sh NAME ZONE kill                             SIGKILL, for a run that does not stop
# The run folder and the data must lie on a disk that all hosts mount at SHARED (a Filestore share, /shared by default).
# Slices of one host need none. PYTHON names an interpreter of 3.11 or newer on the hosts (Ubuntu 22.04 has 3.10).
#
# Restarting: `start` goes on from the newest whole checkpoint; after a crash, a lost host or `stop`, give it again with
# the same options. It clears away what a dead run left and refuses where one still runs. It returns after WATCH seconds
# (20), or with the run's status and the end of its log if the run is over by then. A spot slice that was taken away
# must be created anew first (gcloud compute tpus queued-resources create), then `install` and `start`.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,7s/^# //p' "$0" >&2
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
alive="alive() { [ -e $pid ] && grep -qs scripts.train /proc/\$(cat $pid)/cmdline; }"

case "$action" in
  install)
    if [ -z "$repository" ] || [[ "$repository" =~ ^https?://[^/]*@ ]]; then
      # It would be copied to every host, into its command lines and .git/config.
      echo "the repository's address is empty or holds a password; set REPOSITORY to one without a password" >&2
      exit 2
    fi
    on all "set -e; [ -d t0jax ] || git clone $(printf %q "$repository") t0jax; cd t0jax; git pull --ff-only
      $python -m venv .venv; .venv/bin/pip install --quiet --editable . 'jax[tpu]'"
    ;;
  start)
    # What a dead run left may hold the chips: the children of its process, libtpu's lock.
    on all "$alive; if alive; then echo \"\$(hostname): running; give 'stop' first\" >&2; exit 1; fi
      [ ! -e $pid ] || kill -KILL -- -\$(cat $pid) 2> /dev/null; rm -f $pid; sudo rm -f /tmp/libtpu_lockfile"
    # T0JAX_CLUSTER: the hosts find each other through the metadata server.
    on all "cd t0jax && source .venv/bin/activate || exit 1; $alive
      export T0JAX_CLUSTER=1 T0JAX_DATA_DIR=$shared/data T0JAX_COMPILE_CACHE=$shared/programs
      export LIBTPU_INIT_ARGS=$(printf %q "$flags")
      setsid nohup python -m scripts.train ${*:+$(printf '%q ' "$@")}>> t0jax.log 2>&1 < /dev/null &
      echo \$! > $pid
      for ((second = 0; second < ${WATCH:-20}; second++)); do
        sleep 1
        alive && continue
        wait \$!
        status=\$?
        tail -n 20 t0jax.log >&2
        echo \"\$(hostname): over with status \$status\" >&2
        exit \$status
      done"
    ;;
  log)
    on 0 "tail -n 100 -F t0jax/t0jax.log"
    ;;
  stop)
    on all "$alive; alive || { echo \"\$(hostname): nothing is running\"; exit 0; }
      kill -TERM \$(cat $pid)
      for ((second = 0; second < ${PATIENCE:-600}; second++)); do alive || exit 0; sleep 1; done
      echo \"\$(hostname): still running after ${PATIENCE:-600} s; look at its log, or give 'kill'\" >&2; exit 1"
    ;;
  kill)
    on all "[ ! -e $pid ] || kill -KILL -- -\$(cat $pid) 2> /dev/null || true"
    ;;
  *)
    echo "unknown action '$action'; one of install, start, log, stop, kill" >&2
    exit 2
    ;;
esac
