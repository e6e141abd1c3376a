#!/usr/bin/env bash
# A further node:  cluster/start_worker.sh HEAD_ADDRESS:6379 [further arguments of `ray start`]
#
# Ray finds the CPUs and GPUs itself; CUDA_VISIBLE_DEVICES or --num-gpus restrict it.
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"
export RAY_AUTH_MODE=token

if [ $# -eq 0 ]; then
  echo "The head's address is missing: cluster/start_worker.sh HEAD_ADDRESS:6379" >&2
  exit 2
fi
if ! ray get-auth-token > /dev/null 2>&1; then
  echo "This node has no token: copy ~/.ray/auth_token from the head to the same place here." >&2
  exit 2
fi
address=$1
shift
exec ray start --address "$address" --disable-usage-stats "$@"
