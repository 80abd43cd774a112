# SPDX-License-Identifier: Apache-2.0
# After a power cut: journal replay, then every announced file up to LAST with exact content, then fsck.
D=$(disk dut) || { say nodisk; FAILS=1; finish; }
step replay mount -t ext4 $D /mnt
# files removed by the writer: i-3 whenever i%5==4, that is those with i%5==1; a removal is not synced by itself
chk() { i=1; while [ $i -le ${LAST:-0} ]; do
    if [ $((i % 5)) != 1 ] || [ -e /mnt/d/$i ]; then
      [ "$(yes "seq-$i" | head -c $(( 4096 * (i % 17 + 1) )) | md5sum)" = "$(md5sum < /mnt/d/$i)" ] || { echo "file $i wrong"; return 1; }
    fi; i=$((i+1)); done; echo "$LAST files ok"; }
step files chk; val files "$(tail -1 /tmp/out)"
step umount umount /mnt
step fsck e2fsck -fn $D
