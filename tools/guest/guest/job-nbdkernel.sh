# SPDX-License-Identifier: Apache-2.0
# The guest's kernel NBD client (nbd.ko + nbd-client) against the server: TCP 10.0.2.100:10809, which QEMU's
# user network turns into the server's UNIX socket. Env: EXPORT, CONNS (multi-conn), IOCTL=1 (old ioctl set-up).
modprobe -a virtio_net; modprobe nbd nbds_max=2 max_part=8
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
N=/dev/nbd0; BIG=${BIG:-12}
att() { /bin/nbd-client 10.0.2.100 10809 $N -N "${EXPORT:-}" -C ${CONNS:-1} ${IOCTL:+-L} -b ${BS:-512} || return 1
  n=0; while [ "$(cat /sys/block/nbd0/size)" = 0 ] && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done; }
step list    /bin/nbd-client -l 10.0.2.100 10809; sed 's/^/   list| /' /tmp/out
step attach  att
for f in size ro queue/logical_block_size queue/discard_max_bytes queue/write_zeroes_max_bytes queue/write_cache queue/fua; do
  val $f "$(cat /sys/block/nbd0/$f)"; done
step mkfs    mkfs.ext4 -q -F $N
step mount   mount -t ext4 $N /mnt
wr() { dd if=/dev/urandom of=/mnt/f bs=1M count=$BIG conv=fsync 2>/dev/null && sha256sum /mnt/f > /mnt/SUM && sync; }
step write   wr
rr() { echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /mnt/SUM; }; step reread rr
step fstrim  fstrim -v /mnt; val fstrim "$(sed 's/.*: //' /tmp/out | tr ' ' _)"
step umount  umount /mnt
step fsck    e2fsck -fn $N
S=$(dd if=$N bs=1M count=32 2>/dev/null | sha256sum)
step detach  /bin/nbd-client -d $N
sleep 0.5
step reattach att
same() { [ "$S" = "$(dd if=$N bs=1M count=32 2>/dev/null | sha256sum)" ]; }; step same-data same
MB=$(( $(cat /sys/block/nbd0/size) / 2048 ))
yes pat | dd of=$N bs=1M seek=$((MB-6)) count=4 iflag=fullblock oflag=direct conv=fsync 2>/dev/null
step write-zeroes blkdiscard -f -z -o $(((MB-5)*1048576)) -l 2097152 $N
step zeroes-read same_zero $N $((MB-5)) 2
step detach2 /bin/nbd-client -d $N
