#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# build-debian.sh - a full Debian disk image that boots by itself (GPT + GRUB in the BIOS boot partition),
# made without loop mounts, without a running kernel's help, and without installing a kernel.
#
#   build-debian.sh -g GUESTDIR [-o OUTDIR] [--size MIB] [--suite bookworm] [--mirror URL]
#
# Needs root (debootstrap chroots), and what build-guest.sh made. Makes in OUTDIR (default GUESTDIR):
#   debian.raw     sparse raw disk (default 2048 MiB virtual)
#   debian.qcow2   the same, compressed: the base that VMs' overlays sit on
# The system: minbase + systemd + udev, autologin of root on ttyS0, /root/job.sh run by that login.
set -euo pipefail
G=./guest-out OUT= SIZE=2048 SUITE=bookworm MIRROR=$(sed -n "s/^URIs: //p" /etc/apt/sources.list.d/debian.sources | head -n 1)
while [ $# -gt 0 ]; do case $1 in -g) G=$2; shift 2;; -o) OUT=$2; shift 2;; --size) SIZE=$2; shift 2;;
  --suite) SUITE=$2; shift 2;; --mirror) MIRROR=$2; shift 2;; *) sed -n 3,14p "$0"; exit 2;; esac; done
HERE=$(cd "$(dirname "$0")" && pwd); OUT=${OUT:-$G}; mkdir -p "$OUT"; OUT=$(cd "$OUT" && pwd); G=$(cd "$G" && pwd)
export PATH=$PATH:/usr/sbin:/sbin DEBIAN_FRONTEND=noninteractive
for c in debootstrap:debootstrap sfdisk:fdisk mkfs.ext4:e2fsprogs qemu-img:qemu-utils; do
  command -v ${c%%:*} >/dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends ${c##*:} >/dev/null; }; done
t() { echo "[$SECONDS s] $*"; }; SECONDS=0
W=$(mktemp -d "$OUT/.deb.XXXXXX"); trap 'rm -rf "$W"' EXIT

# --- root file system (cached as a tarball: debootstrap is the slow step) -----------------
if [ ! -f "$OUT/rootfs-$SUITE.tar" ]; then
  debootstrap --variant=minbase --include=systemd-sysv,udev,login,e2fsprogs "$SUITE" "$W/r" "$MIRROR" >"$OUT/debootstrap.log" 2>&1 \
    || { tail "$OUT/debootstrap.log"; exit 1; }
  rm -rf "$W"/r/var/cache/apt/archives/*.deb "$W"/r/var/lib/apt/lists/*_* "$W"/r/usr/share/{doc,man,locale,info}/*
  tar -C "$W/r" -cf "$OUT/rootfs-$SUITE.tar" .
else mkdir "$W/r"; tar -C "$W/r" -xf "$OUT/rootfs-$SUITE.tar"; fi
t "root file system: $(du -sm "$W/r" | cut -f1) MiB"
R=$W/r
echo "testvm" > $R/etc/hostname; : > $R/etc/fstab; echo "127.0.0.1 localhost testvm" > $R/etc/hosts
sed -i 's/^root:[^:]*:/root::/' $R/etc/shadow
mkdir -p $R/etc/systemd/system/serial-getty@ttyS0.service.d $R/root/debs $R/boot/grub
printf '[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear %%I 115200 dumb\n' \
  > $R/etc/systemd/system/serial-getty@ttyS0.service.d/auto.conf
ln -sf /dev/null $R/etc/systemd/system/apt-daily.timer; ln -sf /dev/null $R/etc/systemd/system/apt-daily-upgrade.timer
ln -sf /dev/null $R/etc/systemd/system/systemd-networkd-wait-online.service
echo '[ "$(tty)" = /dev/ttyS0 ] && [ -e /root/job.sh ] && . /root/job.sh' > $R/root/.profile
cp "$HERE/guest/debian-job.sh" $R/root/job.sh
# a few real packages for the guest to install by itself, with what minbase lacks of their dependencies
mkdir -p "$OUT/debs-guest"; ( cd "$OUT/debs-guest"; for p in hello sqlite3 libsqlite3-0 libreadline8 readline-common; do
  ls ${p}_*.deb >/dev/null 2>&1 || apt-get download -q $p >/dev/null 2>&1 || echo "no $p"; done )
cp "$OUT"/debs-guest/*.deb $R/root/debs/
cp "$G/vmlinuz" $R/boot/vmlinuz; cp "$G/initramfs.cpio.gz" $R/boot/initrd.gz
mkdir -p $R/lib/modules   # the modules used here live in the initramfs and are loaded before switch_root
cat > $R/boot/grub/grub.cfg <<'CFG'
serial --unit=0 --speed=115200
terminal_output serial
set timeout=0
menuentry test { linux /boot/vmlinuz console=ttyS0 quiet loglevel=4 panic=-1 switchroot=first
                 initrd /boot/initrd.gz }
CFG

# --- ext4 with its content, no mount -------------------------------------------------------
truncate -s $((SIZE-3))M "$W/p2"; mkfs.ext4 -q -F -L root -d "$R" "$W/p2"; t "ext4 made"
# --- disk: GPT, BIOS boot partition at 1 MiB, root at 2 MiB --------------------------------
D=$OUT/debian.raw; rm -f "$D"; truncate -s ${SIZE}M "$D"
printf 'label: gpt\nstart=2048,size=2048,type=21686148-6449-6E6F-744E-656564454649\nstart=4096,size=%d\n' $(((SIZE-3)*2048)) \
  | sfdisk -q "$D"
dd if="$W/p2" of="$D" bs=1M seek=2 conv=notrunc,sparse status=none
# --- GRUB: unpack the modules, build core.img, patch the two block lists -------------------
( cd "$OUT/debs-guest/.." && mkdir -p debs && cd debs && for p in grub-pc-bin grub-common; do
  ls ${p}_*.deb >/dev/null 2>&1 || apt-get download -q $p >/dev/null 2>&1; done
  for p in grub-pc-bin grub-common; do dpkg -x "$(ls ${p}_*.deb | tail -1)" "$W/grub"; done )
GL=$W/grub/usr/lib/grub/i386-pc
# grub-mkimage links a few libraries; all are in Priority: required/standard or pulled in by qemu
"$W/grub/usr/bin/grub-mkimage" -d "$GL" -O i386-pc -p '(hd0,gpt2)/boot/grub' -o "$W/core.img" \
  biosdisk part_gpt ext2 normal linux serial terminal echo minicmd
python3 - "$GL/boot.img" "$W/core.img" "$D" <<'PY'
import sys, struct
boot, core = bytearray(open(sys.argv[1],'rb').read()), bytearray(open(sys.argv[2],'rb').read())
struct.pack_into('<Q', boot, 0x5c, 2048)          # kernel_sector: where core.img starts
boot[0x66:0x68] = b'\x90\x90'                     # boot_drive_check: trust the drive the BIOS gave
n = (len(core) + 511)//512 - 1
struct.pack_into('<QHH', core, 0x1f4, 2049, n, 0x820)   # block list of the first core sector
with open(sys.argv[3], 'r+b') as f:
    f.write(boot[:440]); f.seek(2048*512); f.write(core)
PY
t "boot loader written"
qemu-img convert -c -O qcow2 "$D" "$OUT/debian.qcow2"; t "qcow2 written"
ls -lsh "$OUT/debian.raw" "$OUT/debian.qcow2"
