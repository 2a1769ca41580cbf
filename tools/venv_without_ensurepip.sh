#!/bin/sh
# Make a virtual environment with pip where python3 has no ensurepip (plain Debian and Ubuntu): the distribution's
# own pip wheel is fetched by apt, unpacked inside the environment, and installs itself. Nothing outside it changes.
set -eu
python=$1
venv=$2
"$python" -m venv --without-pip "$venv"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
fetch() { (cd "$work" && apt-get -qq -o APT::Sandbox::User=root "$@" download python3-pip-whl >/dev/null 2>&1); }
if ! fetch; then # images often come without apt's lists: fetch them too, into a folder of our own
    lists="-o Dir::State::Lists=$work/lists -o Dir::Cache=$work/cache"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    # shellcheck disable=SC2086
    apt-get -qq -o APT::Sandbox::User=root $lists update >/dev/null 2>&1 && fetch $lists || true
fi
if ! (cd "$work" && dpkg -x python3-pip-whl_*.deb . 2>/dev/null); then
    rm -rf "$venv"
    echo "python3 has no ensurepip, and apt cannot fetch python3-pip-whl: install python3-venv, then make again" >&2
    exit 1
fi
wheel=$(echo "$work"/usr/share/python-wheels/pip-*.whl)
"$venv/bin/python" "$wheel/pip" install --quiet --no-index "$wheel"
