#!/usr/bin/env bash
# Starts a Docker engine if none answers, for machines without an init system. As root, Debian 12 with docker.io.
# usage: docker-engine.sh PIDFILE      PIDFILE is written only when an engine was started; stop it with kill
set -euo pipefail
pidfile=$1
log=${pidfile%.pid}.log
answers() { docker version >/dev/null 2>&1; }
answers && exit 0

has_cgroups() { [ -f /sys/fs/cgroup/cgroup.controllers ] || mountpoint -q /sys/fs/cgroup/memory; }
has_cgroups || cgroupfs-mount

start() {
  setsid dockerd "$@" >"$log" 2>&1 </dev/null &
  local pid=$!
  for _ in $(seq 300); do
    if answers; then echo "$pid" >"$pidfile"; return 0; fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  return 1
}
# Without permission to set firewall rules the engine has no bridge; containers then use the host's network.
start || start --bridge=none --iptables=false --ip-masq=false || { echo "dockerd does not start:" >&2; tail -20 "$log" >&2; exit 1; }
