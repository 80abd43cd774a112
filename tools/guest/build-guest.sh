#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# build-guest.sh - build the smallest real Linux guest from Debian packages alone.
#
#   build-guest.sh [-o OUTDIR] [--no-install] [--kernel-root TREE]
# TREE: an unpacked kernel package of another release (see newer-qemu.sh) instead of apt's own
#
# Makes in OUTDIR (default ./guest-out):
#   vmlinux          uncompressed kernel (boots by PVH; saves ~0.3 s of TCG time on
#                    decompression, and is the only thing that gets anywhere on KVM/PVM)
#   vmlinuz          the same kernel as the distribution ships it
#   initramfs.cpio.gz  busybox-static, /init, needed modules, e2fsprogs, nbd-client,
#                    blkdiscard, fstrim, blockdev (about 10 MB unpacked)
#   tools.img        ext4 image, attached read-only as a second disk on request and
#                    mounted at /tools: fio, xfsprogs, btrfs-progs and their libraries
#   kver             kernel release
# Nothing is installed from the kernel package: it is downloaded and unpacked only.
# Works as root or not; no loop mount, no network inside the guest.
set -euo pipefail
OUT=./guest-out; INSTALL=1 KROOT=
while [ $# -gt 0 ]; do case $1 in
  -o) OUT=$2; shift 2;;
  --no-install) INSTALL=0; shift;;
  --kernel-root) KROOT=$(cd "$2" && pwd); shift 2;;
  -h|--help) sed -n '3,21p' "$0"; exit 0;;
  *) echo "unknown option $1" >&2; exit 2;; esac; done
HERE=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin

# --- 1. host tools, by Debian package name -------------------------------------------
PKGS="qemu-system-x86 qemu-utils cpio kmod lz4 xz-utils zstd python3 e2fsprogs xfsprogs
      btrfs-progs util-linux nbd-client fio socat"
need() { command -v "$1" >/dev/null 2>&1; }
if [ $INSTALL = 1 ]; then
  miss=0
  for c in qemu-system-x86_64 qemu-img cpio depmod lz4 xz zstd python3 mkfs.ext4 mkfs.xfs \
           mkfs.btrfs fstrim blkdiscard nbd-client fio socat; do need $c || { miss=1; echo "missing: $c"; }; done
  if [ $miss = 1 ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $PKGS >/dev/null
  fi
fi

mkdir -p "$OUT"; OUT=$(cd "$OUT" && pwd)
W=$(mktemp -d "$OUT/.build.XXXXXX"); trap 'rm -rf "$W"' EXIT

# --- 2. kernel + busybox: download and unpack only ----------------------------------------
# The meta package names the current ABI; a version-pinned cache in OUTDIR/debs is reused.
mkdir -p "$OUT/debs"
apt-cache show busybox-static >/dev/null 2>&1 || apt-get update -qq
KPKG=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ && !n++ {print $2}')
[ -n "$KPKG$KROOT" ] || { echo "apt knows no linux-image-cloud-amd64 (run apt-get update)" >&2; exit 1; }
( cd "$OUT/debs"
  [ -n "$KROOT" ] || ls "${KPKG}"_*.deb >/dev/null 2>&1 || apt-get download -q "$KPKG" 2>/dev/null
  ls busybox-static_*.deb >/dev/null 2>&1 || apt-get download -q busybox-static 2>/dev/null )
if [ -n "$KROOT" ]; then
  mkdir -p "$W/k/lib"; cp -r "$KROOT/boot" "$W/k/";
  for M0 in "$KROOT"/usr/lib/modules/* "$KROOT"/lib/modules/*; do [ -d "$M0" ] && break; done
  mkdir -p "$W/k/lib/modules"; cp -r "$M0" "$W/k/lib/modules/"
else dpkg -x "$(ls "$OUT"/debs/"${KPKG}"_*.deb | tail -1)" "$W/k"; fi
dpkg -x "$(ls "$OUT"/debs/busybox-static_*.deb | tail -1)" "$W/b"
KVER=$(basename "$(ls -d "$W"/k/lib/modules/*)"); echo "$KVER" > "$OUT/kver"
cp "$W/k/boot/vmlinuz-$KVER" "$OUT/vmlinuz"
depmod -b "$W/k" "$KVER"          # the package ships no modules.dep

# bzImage -> vmlinux: the setup header gives payload offset and length
python3 - "$OUT/vmlinuz" "$OUT/vmlinux" <<'PY'
import sys, struct, subprocess
d = open(sys.argv[1], 'rb').read()
off, ln = struct.unpack_from('<II', d, 0x248)
p = d[((d[0x1f1] or 4) + 1) * 512 + off:][:ln]
cmd = (['xz', '-dc', '--single-stream'] if p[:6] == b'\xfd7zXZ\0' else ['zstd', '-dcq'] if p[:4] == b'\x28\xb5\x2f\xfd'
       else ['gzip', '-dc'] if p[:2] == b'\x1f\x8b' else ['lz4', '-dcq'])
o = subprocess.run(cmd, input=p, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout  # 4-byte size trails: ignore rc
assert o[:4] == b'\x7fELF', o[:4]
open(sys.argv[2], 'wb').write(o)
PY

# --- 3. initramfs tree --------------------------------------------------------------------
R=$W/root; mkdir -p "$R"/{bin,dev,proc,sys,run,tmp,mnt,tools,etc,lib64,usr}
cp "$W/b/bin/busybox" "$R/bin/busybox"
for a in $("$R/bin/busybox" --list); do [ "$a" = busybox ] || ln -s busybox "$R/bin/$a"; done
ln -s bin "$R/sbin"; ln -s ../bin "$R/usr/bin"; ln -s ../bin "$R/usr/sbin"
printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > "$R/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' > "$R/etc/group"; ln -s /proc/mounts "$R/etc/mtab"

# copy a program with the libraries its dynamic loader asks for, same paths
copy_bin() { # TREE PROG...
  local t=$1 p f l; shift
  for p in "$@"; do
    f=$(command -v "$p") || { echo "note: $p not found, left out" >&2; continue; }
    rm -f "$t/bin/$(basename "$p")"; cp -L "$f" "$t/bin/$(basename "$p")"
    for l in $(ldd "$f" 2>/dev/null | grep -o '/[^ )]*'); do
      # flatten: every library into TREE/lib, found by the loader through LD_LIBRARY_PATH
      case $l in */ld-linux*) [ -e "$t/lib64/$(basename "$l")" ] || { mkdir -p "$t/lib64"; cp -L "$l" "$t/lib64/"; };;
      *) [ -e "$t/lib/$(basename "$l")" ] || cp -L "$l" "$t/lib/";; esac
    done
  done; }
mkdir -p "$R/lib"
copy_bin "$R" mke2fs e2fsck dumpe2fs resize2fs tune2fs nbd-client blkdiscard fstrim blockdev fallocate lsblk
ln -sf mke2fs "$R/bin/mkfs.ext4"; ln -sf e2fsck "$R/bin/fsck.ext4"
cp /etc/mke2fs.conf "$R/etc/" 2>/dev/null || true

# modules, with what they depend on (modules.dep resolves it)
MODS="virtio_pci virtio_blk virtio_scsi sd_mod virtio_net virtio_console virtio_balloon nbd xfs btrfs dm-mod dm-crypt
      dm-thin-pool dm-flakey loop squashfs erofs overlay fuse virtiofs crc32c-intel crc32c_generic libcrc32c qemu_fw_cfg
      vmw_vsock_virtio_transport nvme nvme-tcp raid1 failover net_failover ublk_drv virtio_rng"
M=lib/modules/$KVER
for m in $MODS; do
  { modprobe -d "$W/k" -S "$KVER" --show-depends "$m" 2>/dev/null || true; } | awk '/^insmod/{print $2}'   # not every release has every module
done | sort -u | while read -r f; do
  f=${f#"$W/k/"}; mkdir -p "$R/$(dirname "$f")"
  case $f in *.xz) xz -dc "$W/k/$f" > "$R/${f%.xz}";; *.zst) zstd -dcq "$W/k/$f" > "$R/${f%.zst}";; *) cp "$W/k/$f" "$R/$f";; esac
done
for f in modules.order modules.builtin modules.builtin.modinfo; do cp "$W/k/$M/$f" "$R/$M/"; done
depmod -b "$R" "$KVER" 2>/dev/null

cp "$HERE/guest/init" "$R/init"; cp "$HERE/guest/lib.sh" "$R/lib.sh"; chmod 755 "$R/init"
( cd "$R" && find . -print0 | LC_ALL=C sort -z | cpio --null -o -H newc --quiet | gzip -1 ) > "$OUT/initramfs.cpio.gz"

# --- 4. tools disk ------------------------------------------------------------------------
T=$W/tools; mkdir -p "$T"/{bin,lib,lib64}
copy_bin "$T" fio mkfs.xfs xfs_repair xfs_io xfs_growfs mkfs.btrfs btrfs
# Debian's fio links librbd/libicu...; 31 MB of it is ICU data. Keep: the loader insists.
SZ=$(( $(du -sm "$T" | cut -f1) + 24 ))
rm -f "$OUT/tools.img"; truncate -s ${SZ}M "$OUT/tools.img"
mkfs.ext4 -q -F -O ^has_journal -m 0 -d "$T" "$OUT/tools.img"
ls -lsh "$OUT"/{vmlinux,vmlinuz,initramfs.cpio.gz,tools.img}
echo "guest kernel $KVER in $OUT"
