#!/usr/bin/env bash
# Submits a job for each run of a table or figure that is not finished, one slice for each.
#
#   cloud_tpu/submit_table.sh FLAGS OF submit.sh -- --table=4 --runs=gs://BUCKET/runs [...]
#
# After -- go flags of crest_jax.paper. The jobs are named table-4-cell-1 and so on, with numbers as
# in its --list, or NAME-cell-1 with --name=NAME. The same command again submits again what was
# preempted, and leaves alone what is waiting, running or finished.
#
# Exit status: 0 all are submitted; 1 some are not; 64 something is wrong with the flags.
set -euo pipefail

options=() name=''
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    *) options+=("$1") ;;
  esac
  shift
done
(($#)) && shift
what='' scale='' folds=''
for word in "$@"; do
  case $word in
    --table=*) what=table-${word#*=} ;;
    --figure=*) what=figure-${word#*=} ;;
    --scale=*) scale=-${word#*=} ;;
    --folds=*) folds=-folds-${word#*=} ;;
  esac
done
if [[ -z $what ]]; then
  echo "error: after -- goes --table=N or --figure=N, with --runs=gs://..." >&2
  exit 64
fi
name=${name:-$what$scale$folds}

cells=$("${PYTHON:-python}" -m crest_jax.paper "$@" --list --unfinished |
  sed -n 's/.*  # \([0-9][0-9]*\).*/\1/p')
missing=()
for cell in $cells; do
  "$(dirname "${BASH_SOURCE[0]}")/submit.sh" ${options[@]+"${options[@]}"} \
    --name="$name-cell-$cell" -- crest_jax.paper "$@" --run --cell="$cell" || missing+=("$cell")
done
[[ -n $cells ]] || echo "nothing is left to run"
if ((${#missing[@]})); then
  echo "error: not submitted: cells ${missing[*]} of $name" >&2
  exit 1
fi
