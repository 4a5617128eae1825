# Every host of a slice runs this when it starts. It starts the job's container, and starts it again
# after failures that may not recur. At the end it deletes the slice, which costs money until then.
#
# submit.sh puts the job's settings before this file, and makes both the startup script.
# shellcheck shell=bash
# shellcheck disable=SC2154  # settings of the job: name project zone image bucket keep arguments
set -uo pipefail
export HOME=${HOME:-/root} # docker's configuration is below it; a startup script has no HOME
pause=${pause:-60}         # seconds in which the other hosts notice a failure and end too
attempts=20

say() { echo "crest_jax: $*"; }

host=$(curl --silent --fail --retry 10 --header 'Metadata-Flavor: Google' \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
gcloud auth configure-docker "${image%%/*}" --quiet

# Runs the container once, until it ends. The container is not a child of this script: docker itself
# sends it SIGTERM when the machine shuts down, and gives it time to save.
run() {
  docker rm --force crest_jax >/dev/null 2>&1 # left from before a restart of the machine
  docker run --detach --name=crest_jax --net=host --privileged --stop-timeout=120 \
    --env=JAX_COMPILATION_CACHE_DIR="$bucket/compiled" "$image" "${arguments[@]}" || return
  docker logs --follow crest_jax 2>&1
  local status
  status=$(docker wait crest_jax) || status=125
  docker logs crest_jax 2>&1 |
    gcloud storage cp - "$bucket/logs/$name/$(date -u +%Y%m%dT%H%M%SZ)-host-$host.log"
  return "$status"
}

for ((attempt = 1; attempt <= attempts; attempt++)); do
  say "attempt $attempt of $attempts: ${arguments[*]}"
  run
  status=$?
  say "exit status $status"
  # 75: the run was told to stop, and has saved. 125: docker could not start the container, maybe
  # because there was no network. Above 128: a signal ended it, as when JAX aborts because another
  # host has died. Any other error would only recur.
  ((status == 75 || status == 125 || status > 128)) || break
  sleep "$pause"
done

# A host that gives up also deletes the slice, because the others would wait for it.
if [[ -z $keep && ($host == 0 || $status != 0) ]]; then
  say "deleting $name"
  sleep "$pause" # so that the others can end and upload their logs
  gcloud compute tpus queued-resources delete "$name" --project="$project" --zone="$zone" \
    --force --quiet --async
fi
exit "$status"
