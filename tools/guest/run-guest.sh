#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# run-guest.sh - boot the small guest with its disk on an NBD server and run a job in it.
#
#   run-guest.sh -g GUESTDIR -s SOCK [-x EXPORT] [-j JOB] [options]
#
#   -g DIR        what build-guest.sh made                       (default ./guest-out)
#   -s SOCK       UNIX socket of the NBD server under test
#   -x EXPORT     export name                                     (default: empty)
#   -j JOB        job name (guest/job-JOB.sh) or a path to a script (default basic)
#   --style S     how QEMU is told about the disk:
#                   drive    -drive file=nbd:unix:SOCK[:exportname=X]   (legacy spelling)
#                   uri      -drive file=nbd+unix:///X?socket=SOCK
#                   blockdev -blockdev driver=nbd,server.type=unix,...  (default)
#   --dev D       virtio-blk | virtio-scsi | nvme                  (default virtio-blk)
#   --accel A     tcg | kvm                                        (default tcg)
#   --smp N --mem MIB --timeout SECONDS --qemu PATH
#   --cache C     writeback | none | writethrough                  (default none)
#   --net         user-mode network whose 10.0.2.100:10809 is the server's UNIX socket, so that
#                 the *kernel* NBD client inside the guest can attach it (jobs nbdkernel*)
#   --vhost-user  SOCK is a vhost-user-blk server (qemu-storage-daemon's other export type), not NBD
#   --no-disk     do not attach the export as a disk (with --net)
#   --env K=V     variable for the job (repeatable)
#   --kill-at RE[:N]  kill -9 QEMU (power cut) once N lines (default 1) of the log match RE
#   --on RE=CMD   run host CMD once when a line matches RE (e.g. restart the server)
#   --log FILE    keep the serial log here                         (default: temporary)
#   --extra 'ARGS'    more QEMU arguments
# Exit: 0 all steps ok; 1 a step failed; 2 usage; 3 the guest died or hung; 4 killed as asked.
# Prints the "@@" lines and the wall time. Only processes it started are ended.
set -uo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
G=./guest-out SOCK= X= JOB=basic STYLE=blockdev DEV=virtio-blk ACCEL=tcg SMP=1 MEM=384 TMO=300
QEMU=qemu-system-x86_64 CACHE=none NET=0 DISK=1 VU=0 KILL= LOG= EXTRA= ; ENVS=(); ONS=()
while [ $# -gt 0 ]; do case $1 in
  -g) G=$2; shift 2;; -s) SOCK=$2; shift 2;; -x) X=$2; shift 2;; -j) JOB=$2; shift 2;;
  --style) STYLE=$2; shift 2;; --dev) DEV=$2; shift 2;; --accel) ACCEL=$2; shift 2;;
  --smp) SMP=$2; shift 2;; --mem) MEM=$2; shift 2;; --timeout) TMO=$2; shift 2;;
  --qemu) QEMU=$2; shift 2;; --cache) CACHE=$2; shift 2;; --net) NET=1; shift;;
  --no-disk) DISK=0; shift;; --vhost-user) VU=1; shift;; --env) ENVS+=("$2"); shift 2;; --kill-at) KILL=$2; shift 2;;
  --on) ONS+=("$2"); shift 2;; --log) LOG=$2; shift 2;; --extra) EXTRA=$2; shift 2;;
  -h|--help) sed -n '3,33p' "$0"; exit 0;; *) echo "unknown option $1" >&2; exit 2;; esac; done
[ -n "$SOCK" ] || [ $DISK = 0 ] || { echo "-s SOCK is needed" >&2; exit 2; }
[ -f "$JOB" ] || JOB=$HERE/guest/job-$JOB.sh
[ -f "$JOB" ] || { echo "no job $JOB" >&2; exit 2; }
W=$(mktemp -d "${TMPDIR:-/tmp}/rg.XXXXXX"); QPID=
cleanup() { [ -n "$QPID" ] && kill -9 "$QPID" 2>/dev/null; rm -rf "$W"; }
trap cleanup EXIT; trap 'exit 130' INT TERM
[ -n "$LOG" ] || LOG=$W/serial.log

# the job rides in a second cpio archive behind the base initramfs: nothing is rebuilt
mkdir "$W/j"; cp "$JOB" "$W/j/job.sh"; : > "$W/j/job.env"
for e in ${ENVS[@]+"${ENVS[@]}"}; do printf "%s='%s'\n" "${e%%=*}" "${e#*=}" >> "$W/j/job.env"; done
( cd "$W/j" && printf 'job.sh\njob.env\n' | cpio -o -H newc --quiet ) > "$W/job.cpio"
cp "$G/initramfs.cpio.gz" "$W/initrd"; truncate -s %4 "$W/initrd"   # the kernel wants the next archive 4-aligned
cat "$W/job.cpio" >> "$W/initrd"

A=(-accel "$ACCEL" -M q35 -m "$MEM" -smp "$SMP" -nodefaults -no-user-config -display none -no-reboot
   -kernel "$G/vmlinux" -initrd "$W/initrd" -append "console=ttyS0 quiet loglevel=4 panic=-1 rootdelay=0"
   -chardev "file,id=ser,path=$LOG" -serial chardev:ser
   -blockdev "driver=file,filename=$G/tools.img,node-name=tf,read-only=on,locking=off"
   -blockdev driver=raw,file=tf,node-name=tools,read-only=on
   -device virtio-blk-pci,drive=tools,serial=tools)
# TCG: Nehalem boots fastest of the models with SSE4.2 (crc32c); "max" doubles boot time (LA57, XSAVE).
# +rdrand seeds the random pool at once; without it mkfs (getrandom) waits 4 s for entropy.
[ "$ACCEL" = tcg ] && A+=(-cpu Nehalem,+rdrand) || A+=(-cpu host)
if [ $VU = 1 ]; then   # the server maps the guest's memory: it must be shareable; DISCARD/FLUSH go by feature bits
  A+=(-object "memory-backend-memfd,id=m0,size=${MEM}M,share=on" -machine memory-backend=m0
      -chardev "socket,id=vu,path=$SOCK" -device vhost-user-blk-pci,chardev=vu,num-queues=1)
elif [ $DISK = 1 ]; then
  case $DEV in
    virtio-blk) D="virtio-blk-pci,drive=dut,serial=dut";;
    virtio-scsi) A+=(-device virtio-scsi-pci,id=sc); D="scsi-hd,bus=sc.0,drive=dut,serial=dut";;
    nvme) D="nvme,drive=dut,serial=dut";; *) exit 2;; esac
  case $STYLE in
    drive) F="nbd:unix:$SOCK"; [ -n "$X" ] && F="$F:exportname=$X"
           A+=(-drive "file=$F,format=raw,if=none,id=dut,cache=$CACHE,discard=unmap");;
    uri)   A+=(-drive "file=nbd+unix:///$X?socket=$SOCK,format=raw,if=none,id=dut,cache=$CACHE,discard=unmap");;
    blockdev) d=off; [ "$CACHE" = none ] && d=on; wc=; [ "$CACHE" = writethrough ] && D="$D,write-cache=off"
           A+=(-blockdev "driver=nbd,node-name=nbd0,server.type=unix,server.path=$SOCK,export=$X,discard=unmap,cache.direct=$d"
               -blockdev "driver=raw,node-name=dut,file=nbd0,discard=unmap,cache.direct=$d");;
    *) exit 2;; esac
  A+=(-device "$D")
fi
if [ $NET = 1 ]; then
  A+=(-netdev "user,id=n0,restrict=on,guestfwd=tcp:10.0.2.100:10809-cmd:socat STDIO UNIX-CONNECT:$SOCK" -device virtio-net-pci,netdev=n0)
fi
# shellcheck disable=SC2206
[ -n "$EXTRA" ] && A+=($EXTRA)

T0=$EPOCHREALTIME; el() { local u=$(( ${EPOCHREALTIME/[.,]/} - ${T0/[.,]/} )); printf '%d.%02d' $((u/1000000)) $((u%1000000/10000)); }
: > "$LOG"
"$QEMU" "${A[@]}" </dev/null >"$W/qemu.err" 2>&1 & QPID=$!
RC= KRE= KN=1
if [ -n "$KILL" ]; then KRE=${KILL%:*} KN=${KILL##*:}; [[ $KILL == *:* && $KN =~ ^[0-9]+$ ]] || { KRE=$KILL; KN=1; }; fi
declare -A DONE=()
SECONDS=0
while kill -0 $QPID 2>/dev/null; do
  if [ -n "$KRE" ] && [ "$(grep -acE "$KRE" "$LOG")" -ge "$KN" ]; then
    kill -9 $QPID 2>/dev/null; RC=4; echo "power cut at $(el)s"; break; fi
  for o in ${ONS[@]+"${ONS[@]}"}; do re=${o%%=*}; c=${o#*=}
    [ -n "${DONE[$o]:-}" ] || ! grep -qaE "$re" "$LOG" || { DONE[$o]=1; echo "host: $c"; bash -c "$c" </dev/null; }
  done
  [ $SECONDS -le "$TMO" ] || { echo "timeout after ${TMO}s" >&2; kill -9 $QPID; RC=3; break; }
  sleep 0.1
done
wait $QPID 2>/dev/null; QPID=
tr -d '\r' < "$LOG" | grep -aE '^(@@|   [a-z0-9-]+\| )' || true
if [ -z "$RC" ]; then
  F=$(tr -d '\r' < "$LOG" | awk '/^@@ done /{print $3}' | tail -1)
  if [ -z "$F" ]; then RC=3; echo "guest gave no result; last lines:" >&2; tail -n 15 "$LOG" >&2; cat "$W/qemu.err" >&2
  elif [ "$F" = 0 ]; then RC=0; else RC=1; fi
fi
# children's CPU seconds: what to compare on a busy machine
times > "$W/times"
CPU=$(tail -1 "$W/times" | awk '{t=0; for(i=1;i<=2;i++){split($i,a,/[ms]/); t+=a[1]*60+a[2]}; printf "%.1f", t}')
echo "run-guest: job=$(basename "$JOB" .sh) accel=$ACCEL style=$STYLE dev=$DEV rc=$RC wall=$(el)s cpu=${CPU}s"
exit $RC
