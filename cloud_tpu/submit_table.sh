#!/usr/bin/env bash
# Submits a job, with its own slice, for each unfinished run of a table or figure.
#
#   cloud_tpu/submit_table.sh FLAGS OF submit.sh -- --table=4 --runs=gs://BUCKET/runs [...]
#
# The flags after -- are those of crest_jax.paper. The jobs are named table-4-cell-1 and so on, with
# the numbers of its --list, or NAME-cell-1 with --name=NAME. Running the same command again submits
# preempted jobs again, and leaves jobs alone that are waiting, running or finished.
#
# Exit status: 0 if all jobs are submitted; 1 if some are not; 64 if a flag is wrong.
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
