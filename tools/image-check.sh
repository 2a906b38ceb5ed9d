#!/bin/sh
# Builds the Dockerfile for real, and runs the image, on a Debian machine without a registry of images: the two official
# Python images are replaced by a Debian root file system with Debian's own Python 3.11 (mmdebstrap), under their names.
# Then tests/integration/deploy/test_demo.py runs the services of docker-compose.yml in containers of that image.
# As root; needs: apt-get install buildah podman crun mmdebstrap. Usage: tools/image-check.sh DIRECTORY
set -eu
work=$(mkdir -p "$1" && cd "$1" && pwd)
repository=$(cd "$(dirname "$0")/.." && pwd)
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
python=$(sed -n 's/^ARG PYTHON=//p' "$repository/Dockerfile")

if ! buildah images -q "docker.io/library/python:$python-bookworm" >/dev/null 2>&1; then
  mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-dev,python3-pip,python3-venv,gcc,libc6-dev \
    bookworm "$work/base.tar"
  container=$(buildah from scratch)
  buildah add -q "$container" "$work/base.tar" /
  # Where this machine has its own certificates and index of packages, the build needs them too.
  for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$file" ] || buildah copy -q "$container" "$file" "$file"
  done
  buildah run "$container" -- sh -c 'rm -f /usr/lib/python3*/EXTERNALLY-MANAGED; ln -s python3 /usr/bin/python'
  for tag in "$python-bookworm" "$python-slim-bookworm"; do
    buildah commit -q "$container" "docker.io/library/python:$tag"
  done
  buildah rm "$container" >/dev/null
fi

buildah build --format docker --network host --pull-never -t localhost/millstream:check "$repository"
buildah images

# crun takes either kind of control groups, not both: the unified ones are hidden from it alone.
cat > "$work/containers.conf" <<'END'
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
END
cd "$repository"
export CONTAINERS_CONF="$work/containers.conf" MILLSTREAM_TEST_IMAGE=localhost/millstream:check
exec unshare --mount sh -c 'mount --make-rprivate /; umount /sys/fs/cgroup/unified 2>/dev/null
  podman run --rm --no-healthcheck --read-only --network host --cap-drop all "$MILLSTREAM_TEST_IMAGE" sh -c "id && ! touch /x"
  exec .venv/bin/pytest -q tests/integration/deploy/test_demo.py'
