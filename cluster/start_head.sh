#!/usr/bin/env bash
# The head node:  cluster/start_head.sh [further arguments of `ray start`]
#
# Token authentication is on: whoever lacks the token can neither join the cluster nor submit a job. The token is made
# once, in ~/.ray/auth_token, where every ray command looks for it; RAY_AUTH_TOKEN_PATH names another file.
# The dashboard, which takes the jobs, listens on this machine only: reach it through an SSH tunnel.
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"
export RAY_AUTH_MODE=token
# `ray job stop` sends SIGTERM and, 3 seconds later by default, SIGKILL. A run needs longer: it writes a checkpoint.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-600}"

(umask 077 && ray get-auth-token --generate > /dev/null)
exec ray start --head --port 6379 --disable-usage-stats "$@"
