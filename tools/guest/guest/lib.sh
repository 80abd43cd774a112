# SPDX-License-Identifier: Apache-2.0
# Sourced by every guest job. Results go to the serial console as lines that start with "@@ ".
#   @@ boot k=v ...         the guest runs
#   @@ step NAME ok SECS    or: @@ step NAME FAIL(rc) SECS
#   @@ val NAME VALUE       a value the host may compare
#   @@ done FAILURES        last line; the guest then powers off
FAILS=0
up() { read -r u _ </proc/uptime; echo "$u"; }
say() { echo "@@ $*"; }
val() { say val "$@"; }
step() { # NAME CMD...   (output goes to the console, prefixed, so a failure can be read)
  _s=$1; shift; _a=$(up)
  "$@" >/tmp/out 2>&1; _rc=$?; _t=$(awk "BEGIN{printf \"%.2f\",$(up)-$_a}")
  if [ $_rc = 0 ]; then say step "$_s" ok "$_t"
  else FAILS=$((FAILS+1)); say step "$_s" "FAIL($_rc)" "$_t"; tail -n 20 /tmp/out | sed "s/^/   $_s| /"; fi
  return $_rc; }
finish() { sync; say done "$FAILS"; sleep 0.1; poweroff -f; sleep 5; }
disk() { # SERIAL -> /dev name of the virtio/scsi disk with that serial
  for s in /sys/block/vd*/serial; do [ "$(cat "$s" 2>/dev/null)" = "$1" ] && { s=${s%/serial}; echo "/dev/${s##*/}"; return 0; }; done
  for d in /sys/block/sd* /sys/block/nvme*; do [ -e "$d" ] || continue
    grep -qs "$1" "$d/device/serial" "$d/device/vpd_pg80" && { echo "/dev/${d##*/}"; return 0; }; done
  # vhost-user-blk servers need not tell a serial: the disk that is not the tools disk
  [ "$1" = dut ] && for s in /sys/block/vd*; do [ "$(cat "$s/serial" 2>/dev/null)" = tools ] || { echo "/dev/${s##*/}"; return 0; }; done
  return 1; }
tools() { d=$(disk tools) || { say notools; return 1; }; mount -o ro "$d" /tools; }
md5z() { dd if="$1" bs=1M skip="$2" count="$3" 2>/dev/null | md5sum; }
same_zero() { # DEV OFFSET_MIB LEN_MIB: all zero? (md5 is the fast way under TCG; cmp takes 4 s/MiB)
  blockdev --flushbufs "$1"; [ "$(md5z "$1" "$2" "$3")" = "$(md5z /dev/zero 0 "$3")" ]; }
# Debian's busybox shell prefers its own applets to $PATH: name the real tools by path
for t in fallocate blkdiscard fstrim blockdev lsblk; do eval "$t() { /bin/$t \"\$@\"; }"; done
