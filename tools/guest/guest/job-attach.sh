# SPDX-License-Identifier: Apache-2.0
# strata attach and strata detach on the guest's kernel. stratad serves raw files of this guest; what the kernel
# wrote to a device has to be in the file, and what is in the file has to be what it reads. Env: ONLY, parts; TLS.
tools || { FAILS=1; finish; }
export PATH=/tools/bin:$PATH LD_LIBRARY_PATH=/lib:/tools/lib
ip link set lo up
mkdir -p /d; mount -t tmpfs -o size=500m tmpfs /d; cd /d
U='nbd+unix:///?socket=/run/s' T='nbd://127.0.0.1:10809/' N=/dev/nbd0
part() { [ -z "$ONLY" ] || case " $ONLY " in *" $1 "*) ;; *) return 1;; esac; say part "$1"; }
says() { # TEXT COMMAND...: the command fails and says TEXT
  _t=$1; shift; if "$@" >/tmp/says 2>&1; then echo "it did not fail"; return 1; fi; cat /tmp/says; grep -qF -- "$_t" /tmp/says; }
is() { echo "is '$2', should be '$1'"; [ "$1" = "$2" ]; }
isnt() { echo "is '$2', should not be '$1'"; [ "$1" != "$2" ]; }
no() { ! "$@"; }
gone() { _n=0; while "$@" >/dev/null 2>&1; do _n=$((_n+1)); [ $_n -lt 1200 ] || return 1; usleep 100000; done; }
serve() { # IMAGE [OPTIONS...]
  _i=$1; shift; rm -f /run/s
  stratad "$_i" --format raw --socket /run/s --pidfile /run/pid --fork "$@" >/tmp/serve 2>&1 && return
  FAILS=$((FAILS+1)); say "serve $_i FAIL"; cat /tmp/serve; return 1; }
endserver() { _p=$(cat /run/pid); kill "$1" "$_p"; gone kill -0 "$_p" || { FAILS=$((FAILS+1)); say "serve end FAIL"; }; }
stopserver() { endserver -TERM; }
crashserver() { endserver -KILL; }
sum() { sha256sum | cut -c1-16; }
filesum() { sum < "$1"; }
devicesum() { blockdev --flushbufs $N; sum < $N; }
free() { [ ! -e /sys/block/nbd0/pid ]; }
sizeis() { is "$1" "$(blockdev --getsize64 $N)"; }
fill() { mkfs.ext4 -q -F $N && mount -t ext4 $N /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=8 conv=fsync 2>/dev/null \
  && sha256sum /mnt/f > /mnt/SUM && sync; }
reread() { echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /mnt/SUM; }
speed() { # NAME: whole disk, one request of 1 MiB at a time
  blockdev --flushbufs $N; _a=$(up); dd if=$N of=/dev/null bs=1M iflag=direct 2>/dev/null
  val "$1" "$(awk "BEGIN{printf \"%.0f MiB/s\", 64/($(up)-$_a)}")"; }
attach() { strata attach "$@"; }

step version strata --version
part nodriver && {
  attach "$U" >/dev/null 2>&1
  # newer drivers are loaded by the kernel when somebody asks for them by netlink
  if [ -e /sys/module/nbd ]; then val loads-itself 1; rmmod nbd; else
    step no-driver        says "load it with 'modprobe nbd'" attach "$U"
    step no-driver-ioctl  says "load it with 'modprobe nbd'" attach --ioctl "$U"
    step no-driver-detach says "load it with 'modprobe nbd'" strata detach $N; fi; }
step modprobe modprobe nbd nbds_max=4 max_part=8
truncate -s 64M disk; truncate -s 48M disk2
step serve serve disk --tcp 127.0.0.1:10809 --tcp-without-tls

part plain && {
  step attach           is $N "$(attach "$U" --connections 4 $N)"
  step size             sizeis 67108864
  step block            is 512 "$(cat /sys/block/nbd0/queue/logical_block_size)"
  step no-process       no pidof strata
  speed plain-speed
  step attached-already says "attached already" attach "$U" $N
  step fill             fill
  step detach-mounted   says "in use" strata detach $N
  step reread           reread
  step umount           umount /mnt
  step detach           strata detach $N
  step is-free          free
  step not-attached     says "not attached" strata detach $N
  step fsck-file        e2fsck -fn disk
  step attach-tcp       is $N "$(attach "$T" --connections 2 $N)"
  step same-data        is "$(filesum disk)" "$(devicesum)"
  step mount            mount -t ext4 $N /mnt
  step reread2          reread
  step umount2          umount /mnt
  # written and not flushed by anybody: detaching does it
  dd if=/dev/urandom of=$N bs=1M seek=40 count=2 2>/dev/null
  S=$(sum < $N)
  step detach2          strata detach nbd0
  step written          is "$S" "$(filesum disk)"
  step chosen           isnt "" "$(C=$(attach "$U") && [ -e "/sys/block/${C#/dev/}/pid" ] && echo "$C" | tee /tmp/chosen)"
  step chosen-detach    strata detach "$(cat /tmp/chosen)"
  step made             is /dev/nbd9 "$(attach "$U" /dev/nbd9)"
  step made-detach      strata detach /dev/nbd9
  step attach-ro        is $N "$(attach "$U" --read-only --block-size 4k --timeout 30 $N)"
  step ro               is "1 4096" "$(blockdev --getro $N) $(cat /sys/block/nbd0/queue/logical_block_size)"
  step ro-write         no dd if=/dev/zero of=$N bs=4k count=1 conv=fsync
  step detach-ro        strata detach $N
  attach "$U" $N >/dev/null; mount -t tmpfs none /sys/block; mount -t tmpfs none /sys/module
  step no-sysfs         strata detach $N
  step no-sysfs-not     says "not attached" strata detach $N
  umount /sys/block; umount /sys/module
  truncate -s 1000 odd; stopserver; serve odd
  step odd-size         says "not a multiple" attach "$U" $N
  stopserver; serve disk --tcp 127.0.0.1:10809 --tcp-without-tls
  step wrong-name       says "partition" strata attach "$U" /dev/nbd0p1
  step no-server        says "nope" attach 'nbd+unix:///?socket=/nope' $N
  step still-free       free; }

part partitions && {
  attach "$U" $N >/tmp/out
  printf 'n\np\n1\n\n\nw\n' | fdisk $N >/dev/null 2>&1
  step detach3          strata detach $N
  step attach-part      attach "$U" $N
  step partition        test -b ${N}p1
  dd if=/dev/urandom of=${N}p1 bs=1M count=1 2>/dev/null
  S=$(dd if=${N}p1 bs=1M count=1 2>/dev/null | sum)
  step mkfs-part        mkfs.ext4 -q -F ${N}p1
  mount -t ext4 ${N}p1 /mnt
  step part-in-use      says "in use" strata detach $N
  umount /mnt
  step detach4          strata detach $N
  step no-partition     test ! -b ${N}p1; }

part reconnect && {
  W="--dead-connection-timeout 120 --identifier disk-1"
  step attach-dead      attach "$U" $N --connections 2 $W
  step backend          is disk-1 "$(cat /sys/block/nbd0/backend)"
  step fill-dead        fill
  (i=0; while [ $i -lt 40 ]; do dd if=/dev/urandom of=/mnt/g$i bs=64k count=4 conv=fsync 2>/dev/null || echo bad >>/tmp/bad; i=$((i+1)); done
   sha256sum /mnt/g* >/mnt/SUMS || echo bad >>/tmp/bad; sync; echo over >/tmp/over) &
  usleep 300000
  crashserver
  usleep 500000
  step writer-waits     test ! -e /tmp/over
  step restart          serve disk
  step other-id         says "disk-1, not disk-2" attach --reconfigure "$U" $N --identifier disk-2
  step without-id       says "say --identifier disk-1" attach --reconfigure "$U" $N
  step reconfigure      is $N "$(attach --reconfigure "$U" $N --connections 2 $W)"
  wait $!
  step writer-went-on   test -e /tmp/over -a ! -e /tmp/bad
  echo 3 > /proc/sys/vm/drop_caches
  step files            sha256sum -c /mnt/SUMS
  # again, now with a disk that has grown
  crashserver; truncate -s 80M disk; serve disk
  step reconfigure-grown attach --reconfigure "$U" $N --connections 2 $W
  step grown            sizeis 83886080
  step files-again      reread
  step umount-dead      umount /mnt
  crashserver; truncate -s 64M small; serve small
  step shrunk           says "another one, or it shrank" attach --reconfigure "$U" $N $W
  stopserver; serve disk
  step reconfigure-last attach --reconfigure "$U" $N --connections 2 $W
  step detach-dead      strata detach $N
  step fsck-dead        e2fsck -fn disk
  step not-attached-re  says "not attached" attach --reconfigure "$U" $N
  # without the time-out, a lost server is an error at once, and --force lets go of it
  attach "$U" $N >/tmp/out; dd if=/dev/zero of=$N bs=1M count=1 2>/dev/null
  crashserver
  step detach-lost      says "did not reach the server" strata detach $N
  step detach-force     strata detach --force $N
  step lost-free        free
  serve disk
  # a server that is there and does not answer
  attach "$U" --timeout 2 $N >/tmp/out
  kill -STOP "$(cat /run/pid)"
  step timeout          says "Input/output error" dd if=$N of=/dev/null iflag=direct bs=4k count=1 skip=77
  kill -CONT "$(cat /run/pid)"
  step timeout-detach   strata detach --force $N
  step timeout-free     free; }

part ioctl && {
  step ioctl            is $N "$(attach --ioctl "$U" --connections 2 $N)"
  step ioctl-process    pidof strata
  step ioctl-busy       says "attached already" attach --ioctl "$U" $N
  step ioctl-fill       fill
  step ioctl-mounted    says "in use" strata detach --ioctl $N
  step ioctl-reread     reread
  umount /mnt
  step ioctl-detach     strata detach --ioctl $N
  step ioctl-over       gone pidof strata
  step ioctl-fsck       e2fsck -fn disk
  step ioctl-chosen     isnt "" "$(attach --ioctl "$U" --read-only)"
  step ioctl-netlink    strata detach $N
  step ioctl-over2      gone pidof strata
  step netlink-ioctl    is $N "$(attach "$U" $N)"
  step netlink-ioctl-d  strata detach --ioctl $N
  step ioctl-free       free
  attach --ioctl "$U" $N >/tmp/out; crashserver
  step ioctl-lost       gone pidof strata
  step ioctl-lost-free  free
  serve disk; }

part proxy && {
  W="--dead-connection-timeout 120"
  step proxy            is $N "$(attach --proxy "$U" --connections 3 $W $N)"
  step proxy-process    pidof strata
  speed proxy-speed
  step proxy-fill       fill
  step proxy-reread     reread
  crashserver
  step proxy-lost       gone pidof strata
  serve disk
  step proxy-again      attach --proxy --reconfigure "$U" $N --connections 3 $W
  dd if=/dev/urandom of=/mnt/h bs=1M count=2 conv=fsync 2>/dev/null
  step proxy-reread2    reread
  umount /mnt
  S=$(devicesum)
  step proxy-detach     strata detach $N
  step proxy-over       gone pidof strata
  step proxy-same       is "$S" "$(filesum disk)"
  step proxy-ioctl      is $N "$(attach --proxy --ioctl "$U" $N)"
  step proxy-ioctl-same is "$S" "$(devicesum)"
  step proxy-ioctl-end  strata detach $N
  step proxy-ioctl-over gone pidof strata
  step proxy-refused    says "nope" attach --proxy 'nbd+unix:///?socket=/nope' $N; }

part tls && [ -n "$TLS" ] && {
  stopserver
  echo 'alice:00112233445566778899aabbccddeeff' >keys; echo 'alice:ffeeddccbbaa99887766554433221100' >wrong
  serve disk --tls-psk /d/keys
  Q='nbds+unix://alice@/?socket=/run/s&tls-psk-file=/d/keys' W="--dead-connection-timeout 120"
  step tls              is $N "$(attach "$Q" --connections 2 $W $N)"
  step tls-process      pidof strata
  speed tls-speed
  step tls-fill         fill
  step tls-reread       reread
  crashserver
  step tls-lost         gone pidof strata
  serve disk --tls-psk /d/keys
  step tls-again        attach --reconfigure "$Q" $N --connections 2 $W
  dd if=/dev/urandom of=/mnt/h bs=1M count=4 conv=fsync 2>/dev/null
  step tls-reread2      reread
  umount /mnt
  S=$(devicesum)
  step tls-detach       strata detach $N
  step tls-over         gone pidof strata
  step tls-same         is "$S" "$(filesum disk)"
  step tls-wrong        says "TLS" attach 'nbds+unix://alice@/?socket=/run/s&tls-psk-file=/d/wrong' $N
  step tls-plain        says "TLS" attach "$U" $N
  step tls-free         free
  step tls-ioctl        is $N "$(attach --ioctl "$Q" $N)"
  step tls-ioctl-same   is "$S" "$(devicesum)"
  step tls-ioctl-detach strata detach $N
  step tls-ioctl-over   gone pidof strata
  stopserver; serve disk; }

part peer && {
  attach "$U" $N >/tmp/out
  step peer-check       /bin/nbd-client -c $N
  step peer-detaches    /bin/nbd-client -d $N
  step peer-free        gone test -e /sys/block/nbd0/pid
  step peer-attach      /bin/nbd-client -unix /run/s $N
  step peer-in-use      says "attached already" attach "$U" $N
  step peer-same        is "$(filesum disk)" "$(devicesum)"
  step detach-peer      strata detach $N
  step peer-ioctl       /bin/nbd-client -unix /run/s $N -L
  step detach-peer-ioctl strata detach $N
  step peer-free2       free; }
stopserver
