#!/bin/sh
# Make the package's environment at its final path. Run it in a mount namespace of its own, as root there:
#   environment.sh FOLDER PYTHON LOCK WHEELS DIST VERSION PIP…
# FOLDER becomes /opt/tunnelmgr. PIP is the command of a pip outside of the environment, which itself has none.
set -eu
folder=$1 python=$2 lock=$3 wheels=$4 dist=$5 version=$6
shift 6

mount -t tmpfs tmpfs /opt
mkdir /opt/tunnelmgr
mount --bind "$folder" /opt/tunnelmgr
cd /

"$python" -m venv --without-pip /opt/tunnelmgr
export PIP_CONFIG_FILE=/dev/null
set -- "$@" --isolated --python /opt/tunnelmgr/bin/python install --quiet --disable-pip-version-check \
    --root-user-action=ignore --no-compile --no-index
"$@" --require-hashes --only-binary=:all: --find-links="$wheels" -r "$lock"
# By its name, because pip would record the path of a file.
"$@" --no-deps --find-links="$dist" "tunnelmgr==$version"
# The programs of other packages, and files for interactive use.
find /opt/tunnelmgr/bin -type f ! -name tunnelmgr -delete
rm -r /opt/tunnelmgr/include
