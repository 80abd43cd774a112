# SPDX-License-Identifier: Apache-2.0
# Runs as root's login on ttyS0 of the full Debian guest. Same "@@" lines as the small guest.
export DEBIAN_FRONTEND=noninteractive HOME=/root; cd /root; FAILS=0
read -r U _ </proc/uptime; echo; echo "@@ boot debian=$(cat /etc/debian_version) kernel=$(uname -r) uptime=$U"
step() { local n=$1 a b; shift; a=$(date +%s.%N); if "$@" >/tmp/out 2>&1; then r=ok; else r="FAIL($?)"; FAILS=$((FAILS+1)); fi
  b=$(date +%s.%N); echo "@@ step $n $r $(awk "BEGIN{printf \"%.2f\",$b-$a}" 2>/dev/null)"; [ "$r" = ok ] || tail -n 15 /tmp/out | sed "s/^/   $n| /"; }
if [ ! -e /root/.round1 ]; then
  step dpkg-install dpkg -i debs/*.deb
  step hello     sh -c 'hello | grep -q Hello'
  step dpkg-verify sh -c 'dpkg --verify 2>/dev/null | grep -v -E "/usr/share/(doc|man|locale|info)" | (! grep .)'
  db() { sqlite3 /root/t.db 'pragma journal_mode=wal; create table t(i integer primary key, b blob);' &&
    for i in $(seq 1 20); do echo "insert into t(b) values(randomblob(4000));"; done | sqlite3 /root/t.db &&
    [ "$(sqlite3 /root/t.db 'pragma integrity_check')" = ok ] && [ "$(sqlite3 /root/t.db 'select count(*) from t')" = 20 ]; }
  step sqlite    db
  step usr-sums  sh -c 'find /usr/bin /usr/lib/x86_64-linux-gnu -type f -print0 | xargs -0 md5sum > /root/usr.md5; [ $(wc -l < /root/usr.md5) -gt 300 ]'
  step files     sh -c 'mkdir -p /root/w && for i in $(seq 1 200); do head -c $((i*97)) /dev/urandom > /root/w/$i; done; md5sum /root/w/* > /root/w.md5; sync'
  touch /root/.round1; sync
else
  step again-usr sh -c 'md5sum -c --quiet /root/usr.md5'
  step again-w   sh -c 'md5sum -c --quiet /root/w.md5'
  step again-sqlite sh -c '[ "$(sqlite3 /root/t.db "pragma integrity_check")" = ok ]'
  step remove    dpkg -r hello
  step trim      fstrim -v /
fi
step fs-errors sh -c '! dmesg | grep -E "EXT4-fs error|I/O error|blk_update_request"'
echo "@@ val files $(wc -l < /root/usr.md5)"; echo "@@ done $FAILS"; sync; systemctl poweroff --force
