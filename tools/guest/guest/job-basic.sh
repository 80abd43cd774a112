# SPDX-License-Identifier: Apache-2.0
# File-system and block work on one disk. Env: BIG=MiB of file data (default 24), FIO=1|0
D=$(disk dut) || { say nodisk; FAILS=1; finish; }
B=/sys/block/${D#/dev/}; BIG=${BIG:-24}
val size "$(cat $B/size)"; for f in logical_block_size physical_block_size discard_max_bytes discard_granularity \
  write_zeroes_max_bytes write_cache fua minimum_io_size optimal_io_size; do val $f "$(cat $B/queue/$f 2>/dev/null)"; done
step mkfs       mkfs.ext4 -q -F -E lazy_itable_init=0 $D
step mount      mount -t ext4 -o discard $D /mnt
write_files() { for i in 1 2 3; do dd if=/dev/urandom of=/mnt/f$i bs=1M count=$((BIG/3)) conv=fsync 2>/dev/null || return 1; done
  dd if=/dev/zero of=/mnt/z bs=1M count=4 conv=fsync 2>/dev/null; (cd /mnt && sha256sum f1 f2 f3 z > SUMS) && sync; }
step write      write_files
drop() { echo 3 > /proc/sys/vm/drop_caches; (cd /mnt && sha256sum -c SUMS); }
step reread     drop
step manyfiles  sh -c 'cd /mnt && mkdir d && i=0; while [ $i -lt 300 ]; do echo "file $i" > d/$i; i=$((i+1)); done; sync; [ $(ls d | wc -l) = 300 ]'
step falloc-zero fallocate -z -o 1048576 -l 1048576 /mnt/f1
step punch      fallocate -p -o 2097152 -l 1048576 /mnt/f2
sums2() { (cd /mnt && sha256sum f1 f2 f3 z > SUMS) && sync; }; step sums sums2
rm -rf /mnt/d; rm /mnt/z; sed -i '/ z$/d' /mnt/SUMS; sync
step fstrim     fstrim -v /mnt; val fstrim "$(sed 's/.*: //' /tmp/out | tr ' ' _)"
if [ "${FIO:-1}" = 1 ] && tools; then
  step fio-verify-file fio --name=v --filename=/mnt/fio.dat --size=16M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio \
     --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 --output=/tmp/fio.log
  rm -f /mnt/fio.dat
fi
step umount     umount /mnt
step fsck       e2fsck -fn $D
step remount    mount -t ext4 -o ro $D /mnt
step recheck    sh -c 'cd /mnt && sha256sum -c SUMS'
umount /mnt
# raw block work on the upper half of the disk (the ext4 is not used again)
MB=$(( $(cat $B/size) / 2048 )); H=$((MB/2))
pat() { yes "pattern-$1" | dd of=$D bs=1M seek=$2 count=$3 iflag=fullblock oflag=direct conv=fsync 2>/dev/null; }
step raw-write  pat A $H 8
step write-zeroes blkdiscard -f -z -o $((H*1048576+1048576)) -l 2097152 $D
step zeroes-read same_zero $D $((H+1)) 2
not_zero() { ! same_zero $D $H 1 && ! same_zero $D $((H+3)) 1; }
step neighbours not_zero
step blkdiscard blkdiscard -f -o $((H*1048576+4*1048576)) -l 2097152 $D
step discard-read dd if=$D of=/dev/null bs=1M skip=$((H+4)) count=2 iflag=direct
if [ "${FIO:-1}" = 1 ] && [ -x /tools/bin/fio ]; then
  # mixed read/write/trim with verification over 16 MiB at odd sizes
  step fio-raw fio --name=r --filename=$D --offset=${H}m --size=16M --rw=randrw --bsrange=512-64k --bs_unaligned=0 --blockalign=512 \
    --direct=1 --ioengine=libaio --iodepth=32 --verify=crc32c --do_verify=1 --verify_fatal=1 --io_size=16M --output=/tmp/fio.log
  step fio-trim fio --name=t --filename=$D --offset=${H}m --size=16M --rw=randtrimwrite --bs=64k --direct=1 --ioengine=libaio --iodepth=8 --io_size=8M --output=/tmp/fio.log
fi
