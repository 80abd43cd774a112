#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""attach.py - strata attach and strata detach against a real kernel's nbd driver, inside the small guest.

strata, stratad and what they load are carried in on a disk; stratad serves raw files of the guest over UNIX
and loopback TCP, the kernel attaches them, and job-attach.sh compares the disks with the files. nbd-client,
which the guest has, detaches what strata attached and the other way round.
Exit: 0 all steps ok, 1 a step failed or the guest died.
"""
import argparse, os, subprocess, sys, time
from vmlib import *
need(BASE)
ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument('-g', '--guest', default='./guest-out'); ap.add_argument('--bin', nargs='+', required=True, help='strata and stratad')
ap.add_argument('--qemu', default='qemu-system-x86_64'); ap.add_argument('--timeout', type=float, default=900)
ap.add_argument('--only', default='', help='names of parts of the job, separated by spaces'); ap.add_argument('--keep', action='store_true')
o = ap.parse_args(); T0 = time.time()


def libraries(path):
    r = subprocess.run(['ldd', path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [w for w in r.stdout.split() if w.startswith('/') and 'ld-linux' not in w]


def gnutls():
    """The library that stratad and strata load when TLS is asked for."""
    for l in subprocess.run(['/sbin/ldconfig', '-p'], stdout=subprocess.PIPE, text=True).stdout.split('\n'):
        if 'libgnutls.so.30' in l: return l.split('=> ')[1].strip()


def payload(box):
    t = box.path('pay'); [os.makedirs(f'{t}/{d}') for d in ('bin', 'lib')]
    files = [os.path.realpath(p) for p in o.bin]; tls = gnutls()
    for p, f in zip(o.bin, files): shutil.copy(f, f'{t}/bin/{os.path.basename(p)}')
    for f in files + ([tls] if tls else []):
        for w in libraries(f): shutil.copy(w, f'{t}/lib/')
    if tls: shutil.copy(tls, f'{t}/lib/')
    mb = int(subprocess.check_output(['du', '-sm', t]).split()[0]) + 24; img = box.path('pay.img')
    box.run(['truncate', '-s', f'{mb}M', img]); box.run(['/sbin/mkfs.ext4', '-q', '-F', '-O', '^has_journal', '-m', '0', '-d', t, img])
    return img


with Box(keep=o.keep) as box:
    pay = payload(box); print(f'payload {os.path.getsize(pay) >> 20} MiB', flush=True)
    env = {'TLS': 1 if gnutls() else ''}
    if o.only: env['ONLY'] = o.only
    ird = make_initrd(box, o.guest, 'attach', env)
    g = Guest(box, 'vm', o.guest, ird, [f'driver=file,node-name=pf,filename={pay},read-only=on', 'driver=raw,node-name=dut,file=pf,read-only=on'],
              qemu=o.qemu, mem=768, device='virtio-blk-pci,drive=dut,serial=tools')
    failure = None
    try: g.wait_line('@@ done', o.timeout)
    except RuntimeError as e: failure = str(e)
    for l in g.lines():
        if l.startswith('@@ ') or l.startswith('   '): print(l)
    if failure: print(failure); print('\n'.join(g.lines()[-40:]))
    ok = not failure and any(l.startswith('@@ done 0') for l in g.lines())
    print(f'attach: {sum(" ok " in l for l in g.lines() if l.startswith("@@ step"))} steps ok, {time.time() - T0:.1f} s')
sys.exit(0 if ok else 1)
