#!/usr/bin/env bash
# Builds headrace/python:3.11, Debian 12 with its Python 3.11, from Debian packages, without an image registry.
# usage: base-image.sh [TAG]      as root, with mmdebstrap and a Docker engine
set -euo pipefail
tag=${1:-headrace/python:3.11}
docker image inspect "$tag" >/dev/null 2>&1 && exit 0
packages=base-files,base-passwd,bash,dash,coreutils,sed,grep,findutils,mawk,libc-bin,passwd,tar,gzip,hostname,debianutils,debconf
packages+=,python3.11,python3.11-venv,libstdc++6,ca-certificates
# Packages are unpacked, not configured (seconds instead of minutes); the hook does the configuration that is needed.
mmdebstrap --quiet --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --include="$packages" --extract-hook='cd "$1"
  cp usr/share/base-passwd/passwd.master etc/passwd
  cp usr/share/base-passwd/group.master etc/group
  ln -sf mawk usr/bin/awk
  ln -sf python3.11 usr/bin/python3
  mkdir -p etc/ssl/certs && find usr/share/ca-certificates -name "*.crt" -exec cat {} + >etc/ssl/certs/ca-certificates.crt
  mkdir -p var/lib/dpkg/status.d  # unpacked packages are in no status file; scanners look here
  for deb in var/cache/apt/archives/*.deb; do
    dpkg-deb --field "$deb" Package Version Architecture >"var/lib/dpkg/status.d/$(dpkg-deb --field "$deb" Package)"
  done
  rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/info
  chroot . ldconfig' bookworm - | docker import --change 'CMD ["python3.11"]' - "$tag"
