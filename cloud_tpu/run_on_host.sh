# What every host of a slice does when it starts: it runs the job's container, again where that
# helps; in the end it deletes the slice, which costs as long as it is there.
#
# submit.sh writes the job's settings above this, and makes it the startup script.
# shellcheck shell=bash
# shellcheck disable=SC2154  # the settings: name project zone image bucket keep arguments
set -uo pipefail
export HOME=${HOME:-/root} # where docker is told of the registry; a startup script has none
pause=${pause:-60}         # seconds; until the other hosts have noticed and ended too
attempts=20

say() { echo "crest_jax: $*"; }

host=$(curl --silent --fail --retry 10 --header 'Metadata-Flavor: Google' \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
gcloud auth configure-docker "${image%%/*}" --quiet

# Once, until it ends. The container is not this script's child: docker itself tells it to stop
# when the machine goes down, and gives it the time to save.
run() {
  docker rm --force crest_jax >/dev/null 2>&1 # of before the machine was started again
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
  # 75: told to stop, and saved. 125: docker could not start it, for want of a network maybe. Above
  # 128: died by a signal, as JAX makes it when another host has died. All else would only recur.
  ((status == 75 || status == 125 || status > 128)) || break
  sleep "$pause"
done

# A host that gives up has to, too: the others would wait for it.
if [[ -z $keep && ($host == 0 || $status != 0) ]]; then
  say "deleting $name"
  sleep "$pause" # for the others to end and leave their logs
  gcloud compute tpus queued-resources delete "$name" --project="$project" --zone="$zone" \
    --force --quiet --async
fi
exit "$status"
