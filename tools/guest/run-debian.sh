#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# run-debian.sh - boot the full Debian image from an NBD export (SeaBIOS -> GRUB -> kernel -> systemd ->
# autologin), let its login script work (dpkg -i, sqlite, files), twice: the second boot checks the first's data.
#   run-debian.sh -s SOCK [-x EXPORT] [--rounds 2] [--accel tcg|kvm] [--style blockdev|drive] [--timeout S]
#   run-debian.sh --standin DIR   make a qcow2 overlay over DIR/debian.qcow2 and serve it by qemu-nbd
# Exit 0 when every round ended with "@@ done 0".
set -uo pipefail
SOCK= X= N=2 ACCEL=tcg STYLE=blockdev TMO=420 STAND= QEMU=qemu-system-x86_64 MEM=512 SMP=1 LOG=
while [ $# -gt 0 ]; do case $1 in -s) SOCK=$2; shift 2;; -x) X=$2; shift 2;; --rounds) N=$2; shift 2;; --accel) ACCEL=$2; shift 2;;
  --style) STYLE=$2; shift 2;; --timeout) TMO=$2; shift 2;; --standin) STAND=$2; shift 2;; --qemu) QEMU=$2; shift 2;;
  --smp) SMP=$2; shift 2;; --log) LOG=$2; shift 2;; *) sed -n 3,8p "$0"; exit 2;; esac; done
W=$(mktemp -d "${TMPDIR:-/tmp}/rd.XXXXXX"); PIDS=(); LOG=${LOG:-$W/serial.log}
cleanup() { for p in ${PIDS[@]+"${PIDS[@]}"}; do kill "$p" 2>/dev/null; done; wait 2>/dev/null; rm -rf "$W"; }
trap cleanup EXIT; trap 'exit 130' INT TERM
if [ -n "$STAND" ]; then
  SOCK=$W/s.sock; qemu-img create -q -f qcow2 -F qcow2 -b "$(realpath "$STAND")/debian.qcow2" "$W/vm.qcow2"
  qemu-nbd -t -e 4 -f qcow2 -k "$SOCK" --discard=unmap "$W/vm.qcow2" & PIDS+=($!)
  for i in $(seq 100); do [ -S "$SOCK" ] && break; sleep 0.1; done
fi
[ -n "$SOCK" ] || { sed -n 3,8p "$0"; exit 2; }
case $STYLE in
  drive) D=(-drive "file=nbd:unix:$SOCK${X:+:exportname=$X},format=raw,if=none,id=dut,cache=none,discard=unmap");;
  *) D=(-blockdev "driver=nbd,node-name=nbd0,server.type=unix,server.path=$SOCK,export=$X,cache.direct=on,discard=unmap"
        -blockdev driver=raw,node-name=dut,file=nbd0,cache.direct=on,discard=unmap);; esac
[ "$ACCEL" = tcg ] && C=Nehalem,+rdrand || C=host
for r in $(seq "$N"); do
  : > "$LOG"; T0=$EPOCHREALTIME; SECONDS=0
  "$QEMU" -accel "$ACCEL" -cpu $C -M q35 -m $MEM -smp $SMP -nodefaults -no-user-config -display none -no-reboot \
    "${D[@]}" -device virtio-blk-pci,drive=dut,serial=dut,bootindex=0 -device virtio-rng-pci \
    -chardev "file,id=ser,path=$LOG" -serial chardev:ser </dev/null >"$W/err" 2>&1 & P=$!; PIDS+=($P)
  login=
  while kill -0 $P 2>/dev/null; do
    [ -n "$login" ] || ! grep -qa '^@@ boot' "$LOG" || login=$(( (${EPOCHREALTIME/[.,]/} - ${T0/[.,]/}) / 10000 ))
    [ $SECONDS -le "$TMO" ] || { echo "timeout"; kill $P; break; }; sleep 0.2; done
  wait $P 2>/dev/null
  tr -d '\r' < "$LOG" | grep -aE '^(@@|   [a-z0-9-]+\| )'
  w=$(( (${EPOCHREALTIME/[.,]/} - ${T0/[.,]/}) / 10000 ))
  echo "run-debian: round $r accel=$ACCEL login after $((${login:-0}/100)).$(printf %02d $((${login:-0}%100)))s, all $((w/100)).$(printf %02d $((w%100)))s"
  tr -d '\r' < "$LOG" | grep -qa '^@@ done 0' || { echo "round $r FAILED"; tail -n 20 "$LOG"; cat "$W/err"; exit 1; }
done
[ -z "$STAND" ] || { qemu-img info "$W/vm.qcow2" -U | grep -E 'disk size|virtual'; }
