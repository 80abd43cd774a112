# SPDX-License-Identifier: Apache-2.0
# Runs the NBD server under test *inside* the guest, its files on the guest's own disk, so that killing QEMU loses
# the page cache under the server, as a power failure does. Env: CREATE (first time), RECOVER (later times), SERVE.
D=$(disk data) || { say nodisk; FAILS=1; finish; }
modprobe virtio_net; ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
tools || { FAILS=1; finish; }
export PATH=/tools/bin:$PATH LD_LIBRARY_PATH=/lib:/tools/lib
[ "$FIRST" = 1 ] && step mkfs mkfs.ext4 -q -F -E lazy_itable_init=0 $D
step mount mount -t ext4 -o ${MOPT:-data=ordered} $D /mnt; cd /mnt
if [ "$FIRST" = 1 ]; then step create sh -c "$CREATE"; sync; elif [ -n "$RECOVER" ]; then step recover sh -c "$RECOVER"; fi
sh -c "exec $SERVE" >/tmp/srv.log 2>&1 &
n=0;   # 0x2A39 = 10809, state 0A = listening
while ! grep -q ":2A39 .* 0A " /proc/net/tcp /proc/net/tcp6 && [ $n -lt 100 ]; do usleep 100000; n=$((n+1)); done
[ $n -lt 100 ] || { cat /tmp/srv.log; ps; FAILS=1; finish; }
say serving
read -r line </dev/console       # "stop" from the host: orderly end
kill %1; wait %1
[ -z "$CHECK" ] || { step check sh -c "$CHECK"; sed 's/^/   check| /' /tmp/out; }
cd /; step umount umount /mnt
