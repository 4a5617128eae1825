#!/usr/bin/env bash
# Runs one command of crest_jax on every host of a new Cloud TPU slice.
#
#   cloud_tpu/submit.sh --name=table-4-cell-3 [--spot] [--keep] \
#     --project=PROJECT --zone=ZONE --accelerator=v5litepod-16 --runtime=v2-alpha-tpuv5-lite \
#     --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/crest_jax:TAG --bucket=gs://BUCKET \
#     [--service-account=ADDRESS] \
#     -- crest_jax.paper --table=4 --run --cell=3 --runs=gs://BUCKET/runs
#
# The environment variables PROJECT, ZONE, ACCELERATOR, RUNTIME, IMAGE, BUCKET and SERVICE_ACCOUNT
# are the defaults of the flags with these names. --spot requests a slice that may be preempted;
# --keep keeps the slice after the command has ended. Logs and compiled steps go to the bucket.
#
# Running the same command again submits the job again if it was preempted, and otherwise does
# nothing.
#
# Exit status: 0 if the job is or was already submitted; 64 if a flag is wrong; 75 if an earlier job
# of this name is still being deleted, so try again in a few minutes; otherwise that of gcloud.
set -euo pipefail

refuse() {
  echo "error: $*" >&2
  exit 64
}

# check FLAG PATTERN EXPECTED: refuses unless the variable named FLAG has a value that matches.
check() {
  local value=${!1}
  [[ -n $value ]] || refuse "--$1 is missing; give $3"
  [[ $value =~ ^($2)$ ]] || refuse "--$1=$value must be $3"
}

name='' spot='' keep=''
project=${PROJECT:-} zone=${ZONE:-} accelerator=${ACCELERATOR:-} runtime=${RUNTIME:-}
image=${IMAGE:-} bucket=${BUCKET:-} service_account=${SERVICE_ACCOUNT:-}
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --service-account=*) service_account=${1#*=} ;;
    --spot) spot=yes ;;
    --keep) keep=yes ;;
    --) break ;;
    *) refuse "'$1' is no --flag=value of submit.sh; the command to run goes after --" ;;
  esac
  shift
done
bucket=${bucket%/}
check name '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' \
  'at most 63 lower-case letters, digits and hyphens, as table-4-cell-3'
check project '[a-z][-a-z0-9.:]*' 'the id of a project of yours; gcloud projects list shows them'
check zone '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone that has such TPUs, as us-west4-a'
check accelerator 'v[0-9]+[a-z]*-[0-9]+' 'a kind of TPU and its size, as v5litepod-16'
check runtime '[a-z][-a-z0-9.]+' "what goes with the accelerator: v2-alpha-tpuv5-lite (v5litepod), \
v2-alpha-tpuv5 (v5p), v2-alpha-tpuv6e (v6e) or tpu-ubuntu2204-base (v4 and older)"
check image '[-a-z0-9]+-docker\.pkg\.dev(/[-a-zA-Z0-9._]+){3,}[:@][-a-zA-Z0-9._:]+' \
  'an image in Artifact Registry with its tag, as us-docker.pkg.dev/PROJECT/REPOSITORY/crest_jax:1'
check bucket 'gs://[a-z0-9][-a-z0-9._]+(/[^ ]+)?' 'a bucket, or a folder in one, as gs://my-bucket'

# The command gets the flags to find the other hosts, with time for those that take longer to pull
# the image or to restart.
has() { printf '%s\n' "${@:2}" | grep -e "$1" >/dev/null; }
hosts=(--find_hosts --join_timeout=900)
(($#)) && shift
case ${1:-} in
  crest_jax.main)
    has '^--workdir=gs://' "$@" ||
      refuse "crest_jax.main needs --workdir=gs://...: the hosts have no other folder in common"
    arguments=("$1" "${hosts[@]}" "${@:2}")
    ;;
  crest_jax.paper)
    has '^--run$' "$@" || refuse "crest_jax.paper needs --run here, and mostly --cell=I"
    has '^--runs=gs://' "$@" ||
      refuse "crest_jax.paper needs --runs=gs://...: the hosts have no other folder in common"
    arguments=()
    while (($#)) && [[ $1 != -- ]]; do
      arguments+=("$1")
      shift
    done
    arguments+=(-- "${hosts[@]}" "${@:2}")
    ;;
  *)
    refuse "'${1:-}' cannot run on a slice; after -- goes crest_jax.main or crest_jax.paper," \
      "with its flags"
    ;;
esac

queued_resources() {
  gcloud compute tpus queued-resources "$@" --project="$project" --zone="$zone"
}

state=$(queued_resources list --format='value(name.basename(),state.state)' |
  awk -v name="$name" '$1 == name { print $2 }')
case $state in
  '') ;;
  SUSPENDED | FAILED)
    echo "$name is $state: deleting it, to submit it again"
    queued_resources delete "$name" --force --quiet
    ;;
  SUSPENDING | DELETING)
    echo "$name is $state: run the same command again in a few minutes" >&2
    exit 75
    ;;
  *)
    echo "$name is $state: left alone"
    exit 0
    ;;
esac

# The startup script of every host: the settings of this job, then run_on_host.sh. It is passed as a
# file, because gcloud's --metadata interprets commas and equal signs.
script=$(mktemp)
trap 'rm -f "$script"' EXIT
{
  echo '#!/usr/bin/env bash'
  printf '%s=%q\n' name "$name" project "$project" zone "$zone" \
    image "$image" bucket "$bucket" keep "$keep"
  printf 'arguments=('
  printf '%q ' "${arguments[@]}"
  printf ')\n'
  cat "$(dirname "${BASH_SOURCE[0]}")/run_on_host.sh"
} >"$script"

create=(
  create "$name" --node-id="$name"
  --accelerator-type="$accelerator" --runtime-version="$runtime"
  --metadata-from-file=startup-script="$script"
)
[[ -z $spot ]] || create+=(--spot)
[[ -z $service_account ]] || create+=(--service-account="$service_account")
queued_resources "${create[@]}"
echo "$name is submitted: ${arguments[*]}"
