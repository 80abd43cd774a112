# SPDX-License-Identifier: Apache-2.0
# Boot, look at the disk, power off: measures start to result.
D=$(disk dut) && val size "$(blockdev --getsize64 "$D")" || FAILS=1
