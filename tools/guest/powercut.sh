#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# powercut.sh - cut the power of a writing guest, reboot, check what it had fsync'ed.
#   powercut.sh -g GUESTDIR -s SOCK [-x EXPORT] [-n ROUNDS] [--restart 'CMD'] [run-guest options...]
# --restart CMD runs on the host between the cut and the check: kill -9 and restart the *server*
# there to have its own crash recovery tested too (a server that acks a flush before its data
# and metadata are durable fails once the host's page cache is lost as well: see crashserver.sh).
set -uo pipefail
HERE=$(cd "$(dirname "$0")" && pwd); G=./guest-out SOCK= X= N=3 RESTART= ; REST=()
while [ $# -gt 0 ]; do case $1 in -g) G=$2; shift 2;; -s) SOCK=$2; shift 2;; -x) X=$2; shift 2;; -n) N=$2; shift 2;;
  --restart) RESTART=$2; shift 2;; *) REST+=("$1"); shift;; esac; done
[ -n "$SOCK" ] || { sed -n 3,9p "$0"; exit 2; }
L=$(mktemp); trap 'rm -f "$L"' EXIT; from=1 mk=1 bad=0
for r in $(seq "$N"); do
  n=$(( RANDOM % 40 + 10 ))
  "$HERE/run-guest.sh" -g "$G" -s "$SOCK" -x "$X" -j crash --env MKFS=$mk --env FROM=$from --env N=100000 \
     --kill-at "^@@ synced:$n" --log "$L" ${REST[@]+"${REST[@]}"} | grep -v '@@ synced'; rc=${PIPESTATUS[0]}
  [ "$rc" = 4 ] || { echo "round $r: guest ended with $rc before the cut"; exit 1; }
  last=$(tr -d '\r' < "$L" | sed -n 's/^@@ synced //p' | grep -E '^[0-9]+$' | tail -1)
  # the log's last line may be cut short in mid-number: trust the one before it
  last=$(( last - 1 )); echo "round $r: cut after synced=$last"
  [ -z "$RESTART" ] || bash -c "$RESTART" </dev/null || { bad=1; break; }
  "$HERE/run-guest.sh" -g "$G" -s "$SOCK" -x "$X" -j crashcheck --env LAST=$last ${REST[@]+"${REST[@]}"} || { bad=1; break; }
  mk=0 from=$(( last + 1 ))
done
[ $bad = 0 ] && echo "powercut: $N rounds passed" || echo "powercut: FAILED"; exit $bad
