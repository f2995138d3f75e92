#!/bin/bash
# Builds the Debian packages, installs them in a clean Debian 12 made for the purpose, and there
# compiles and runs the program that the README prints, the demo, and examples in Python.
#
# Needs root, debootstrap and a Debian mirror (the one that this machine uses); exits with 77 and a
# reason where they are missing.
set -eu
cd "$(dirname "$0")/../.."

skip() {
    echo "$*"
    exit 77
}
[ "$(id -u)" -eq 0 ] || skip "not root: can't make a clean Debian"
command -v debootstrap >/dev/null || skip "debootstrap is missing (scripts/setup deb installs it)"
unshare --mount true 2>/dev/null || skip "mounting is not permitted here"

# The mirrors of this machine, as lines of a sources.list.
sources=$(apt-get indextargets --format 'deb $(REPO_URI) $(CODENAME) $(COMPONENT)' \
    'Created-By: Packages' | grep ' bookworm' | sort -u || true)
mirror=$(awk '$3 == "bookworm" { print $2; exit }' <<<"$sources")
[ -n "$mirror" ] || skip "no mirror of Debian 12 is set up here"

scripts/make-deb

work=$(mktemp -d)
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT
if ! debootstrap --variant=minbase --include=gcc,libc6-dev,pkgconf bookworm "$root" "$mirror" \
    >"$work/log" 2>&1; then
    tail -n 5 "$work/log"
    skip "debootstrap failed: no network?"
fi
cp /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
echo "$sources" >"$root/etc/apt/sources.list"
mkdir "$root/packages"
cp build/deb/*.deb "$root/packages"
rm "$root"/packages/*-dbgsym_*
tests/readme_block.py README.md handover.c >"$root/handover.c"
cp -r examples/python "$root/examples"

cat >"$root/try" <<'EOS'
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y install --no-install-recommends /packages/*.deb >/log 2>&1 || { cat /log; exit 1; }
echo "== the README's program"
cc -Wall -Werror -o handover handover.c $(pkg-config --cflags --libs llm-datadist)
./handover
echo "== the command"
llm-datadist --version
llm-datadist demo
echo "== the Python package"
cd /examples
python3 -c 'import llm_datadist, llm_datadist_v1
assert llm_datadist.__file__ == "/usr/lib/python3/dist-packages/llm_datadist/__init__.py"'
python3 handover.py
python3 layerwise.py
echo "== removal leaves nothing"
apt-get -qq -y purge libllm-datadist0 >/dev/null 2>&1
[ -z "$(find /usr \( -name '*llm_datadist*' -o -name '*llm-datadist*' \))" ]
EOS
# The mounts go with the process.
unshare --mount sh -eu -c 'mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root sh /try' sh "$root"
