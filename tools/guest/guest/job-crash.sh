# SPDX-License-Identifier: Apache-2.0
# Writer for the power-cut test: the host kills QEMU (and, if it likes, the server) at some "@@ synced N".
# Everything announced must be there after the restart (job-crashcheck). MKFS=1 for the first round.
D=$(disk dut) || { say nodisk; FAILS=1; finish; }
[ "${MKFS:-1}" = 1 ] && step mkfs mkfs.ext4 -q -F $D
step mount mount -t ext4 -o discard $D /mnt
mkdir -p /mnt/d; i=${FROM:-1}; N=${N:-400}
while [ $i -lt $N ]; do
  yes "seq-$i" | head -c $(( 4096 * (i % 17 + 1) )) | dd of=/mnt/d/$i conv=fsync 2>/dev/null || { FAILS=1; break; }
  [ $((i % 5)) = 4 ] && rm -f /mnt/d/$((i-3))          # discards (mount -o discard) mixed in
  say synced $i; i=$((i+1))
done
umount /mnt
