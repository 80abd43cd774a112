#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# newer-qemu.sh - QEMU, qemu-nbd, qemu-storage-daemon, libnbd and a kernel of a newer Debian release beside the
# installed ones: packages are unpacked into a directory, nothing is installed or configured.
#   newer-qemu.sh [-o OUTDIR] [--suite trixie] [--mirror URL]
# Makes OUTDIR/root (the unpacked tree, about 340 MiB) and OUTDIR/bin/{qemu-system-x86_64,qemu-img,qemu-nbd,qemu-io,
# qemu-storage-daemon,nbdinfo,nbdcopy,...}: wrappers that start the programs with that release's own loader and
# libraries, so that they run on an older host. Use: PATH=OUTDIR/bin:$PATH, or --qemu OUTDIR/bin/qemu-system-x86_64,
# and build-guest.sh --kernel-root OUTDIR/root for a guest with that release's kernel.
# trixie: QEMU 10.0, libnbd 1.22 (extended headers, 64-bit block status), Linux 6.12.   apt: mmdebstrap
set -euo pipefail
O=./newer-qemu S=trixie M=$(sed -n "s/^URIs: //p" /etc/apt/sources.list.d/debian.sources | head -n 1)
while [ $# -gt 0 ]; do case $1 in -o) O=$2; shift 2;; --suite) S=$2; shift 2;; --mirror) M=$2; shift 2;; *) sed -n 3,11p "$0"; exit 2;; esac; done
command -v mmdebstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null; }
mkdir -p "$O/bin"; O=$(cd "$O" && pwd)
[ -e "$O/root/.done" ] || { rm -rf "$O/root"
  mmdebstrap --quiet --variant=extract --mode="$([ "$(id -u)" = 0 ] && echo root || echo unshare)" \
    --include=qemu-system-x86,qemu-utils,qemu-block-extra,libnbd-bin,nbd-client,linux-image-cloud-amd64 "$S" "$O/root" "$M" 2>"$O/log" || { tail "$O/log"; exit 1; }
  touch "$O/root/.done"; }
R=$O/root; LD=$(ls "$R"/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2)
for p in qemu-system-x86_64 qemu-img qemu-nbd qemu-io qemu-storage-daemon nbdinfo nbdcopy nbddump nbdfuse; do
  [ -e "$R/usr/bin/$p" ] || continue; extra=
  # QEMU looks for its firmware and its block modules under its own prefix
  [ $p = qemu-system-x86_64 ] && extra="-L $R/usr/share/qemu -L $R/usr/share/seabios -L $R/usr/lib/ipxe/qemu"
  printf '#!/bin/sh\nexport QEMU_MODULE_DIR=%s/usr/lib/x86_64-linux-gnu/qemu\nexec %s --argv0 %s --library-path %s/usr/lib/x86_64-linux-gnu %s/usr/bin/%s %s "$@"\n' \
     "$R" "$LD" "$p" "$R" "$R" "$p" "$extra" > "$O/bin/$p"; chmod 755 "$O/bin/$p"
done
"$O/bin/qemu-system-x86_64" --version | head -1; "$O/bin/nbdinfo" --version | tail -1; ls "$R"/boot/vmlinuz-* 2>/dev/null
