#!/bin/sh
# What must be on the machine before `make` can set up the rest. Says everything that is missing at once.
# Prints the Python to use. A Kafka of yours (MILLSTREAM_BOOTSTRAP_SERVERS, for tests MILLSTREAM_TEST_BOOTSTRAP) makes
# Java and Maven unnecessary.
set -u
missing=""
need() { missing="$missing
  - $1"; }

python=""
# The lock file was resolved on 3.11: that one first.
for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  need "Python 3.11 or newer: apt-get install python3 python3-venv (Debian 12, Ubuntu 24.04), or brew install python@3.11"
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  need "the venv module of $python: apt-get install python3-venv"
fi

if [ -z "${MILLSTREAM_BOOTSTRAP_SERVERS:-}${MILLSTREAM_TEST_BOOTSTRAP:-}" ]; then
  java=${JAVA_HOME:+$JAVA_HOME/bin/}java
  version=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
  if [ -z "$version" ] || [ "$version" -lt 17 ]; then
    need "Java 17 or newer (found: ${version:-none}): apt-get install openjdk-17-jre-headless, or brew install openjdk@17"
  fi
  command -v mvn >/dev/null 2>&1 || need "Maven (mvn): apt-get install maven, or brew install maven"
fi

if [ -n "$missing" ]; then
  echo "millstream needs:$missing" >&2
  exit 1
fi
echo "$python"
