# SPDX-License-Identifier: Apache-2.0
# XFS on the disk (300 MiB or more: mkfs.xfs refuses less): it asks for other things than ext4 (log writes with FUA/flush, discard at mkfs of all, reflink)
D=$(disk dut) || { say nodisk; FAILS=1; finish; }; tools; modprobe xfs
step mkfs    mkfs.xfs -q -f $D
step mount   mount -t xfs -o discard $D /mnt
wr() { dd if=/dev/urandom of=/mnt/f bs=1M count=${BIG:-24} conv=fsync 2>/dev/null && (cd /mnt && sha256sum f > SUM) && sync; }; step write wr
step extend  xfs_io -f -c 'pwrite -S 0x5a 0 4m' -c 'fpunch 1m 1m' -c 'fzero 2m 1m' -c fsync /mnt/g
rm /mnt/g; sync
step fstrim  fstrim -v /mnt
step umount  umount /mnt
step repair  xfs_repair -n $D
step remount mount -t xfs -o ro $D /mnt
step recheck sh -c 'cd /mnt && sha256sum -c SUM'
