#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""crashserver.py - power failure under the *server*: does it keep what it acknowledged a flush for?

  crashserver.py -g GUESTDIR [--bin PROG ...] [--create CMD] [--serve CMD] [--recover CMD] [--check CMD]
                 [--rounds 3] [--seconds 6] [--size MIB] [--seed N]

The server runs inside the TCG guest, its image on the guest's ext4. A client on this host writes through TCP
(QEMU's user network), flushes now and then, and notes for every 512-byte sector which versions are allowed:
the one at the last acknowledged flush (or FUA write), or any written after it. Then QEMU is killed (-9): the guest's page
cache is gone. The guest boots again, the server recovers, every sector must hold an allowed version.
--bin     programs to carry into the guest, with their libraries (default: qemu-nbd and qemu-img)
--create  run in /mnt once; --serve runs in the foreground on port 10809, export "" (default: a qcow2 overlay
          over a raw base by qemu-nbd); --check run after an orderly stop at the end (default qemu-img check)
--broken  self-test of this test: serve with cache=unsafe, which must be caught
apt: qemu-system-x86 qemu-utils python3-libnbd cpio e2fsprogs. Run with /usr/bin/python3.
"""
import argparse, json, os, random, shutil, socket, struct, subprocess, sys, threading, time
from vmlib import *
need(BASE_NBD)
import nbd
ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument('-g', '--guest', default='./guest-out'); ap.add_argument('--bin', nargs='*', default=['qemu-nbd', 'qemu-img'])
ap.add_argument('--create', default='qemu-img create -q -f raw base 64M && qemu-img create -q -f qcow2 -F raw -b base d.qcow2')
ap.add_argument('--serve', default='qemu-nbd -t -e 4 -p 10809 -f qcow2 --cache={cache} --discard=unmap d.qcow2')
ap.add_argument('--recover', default=''); ap.add_argument('--check', default='qemu-img check d.qcow2')
ap.add_argument('--rounds', type=int, default=3); ap.add_argument('--seconds', type=float, default=6)
ap.add_argument('--seed', type=int, default=int(time.time())); ap.add_argument('--broken', action='store_true')
ap.add_argument('--qemu', default='qemu-system-x86_64'); ap.add_argument('--keep', action='store_true')
o = ap.parse_args(); T0 = time.time(); R = random.Random(o.seed)
def say(*a): print(f'[{time.time()-T0:7.2f}]', *a, flush=True)
B = 4096


def payload(box):
    t = box.path('pay'); [os.makedirs(f'{t}/{d}') for d in ('bin', 'lib', 'lib64')]
    for p in o.bin:
        f = shutil.which(p) or p; shutil.copy(f, f'{t}/bin/'); os.chmod(f'{t}/bin/{os.path.basename(f)}', 0o755)
        for w in subprocess.run(['ldd', f], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.split():
            if w.startswith('/') and 'ld-linux' not in w: shutil.copy(w, f'{t}/lib/')
    mb = int(subprocess.check_output(['du', '-sm', t]).split()[0]) + 24; img = box.path('pay.img')
    box.run(['truncate', '-s', f'{mb}M', img]); box.run(['/sbin/mkfs.ext4', '-q', '-F', '-O', '^has_journal', '-m', '0', '-d', t, img])
    return img


def boot(box, first, pay, data, port, n):
    env = {'FIRST': 1 if first else 0, 'CREATE': o.create, 'SERVE': o.serve.replace('{cache}', 'unsafe' if o.broken else 'writeback'), 'RECOVER': o.recover, 'CHECK': o.check}
    ird = make_initrd(box, o.guest, 'serve', env, f'initrd{n}')
    # cache.no-flush: this host stays up, so its page cache is as good as a disk; only the guest's cache is lost
    return Guest(box, f'vm{n}', o.guest, ird, [f'driver=file,node-name=df,filename={data},cache.no-flush=on', 'driver=raw,node-name=dut,file=df'],
        qemu=o.qemu, device='virtio-blk-pci,drive=dut,serial=data', extra=['-blockdev', f'driver=file,node-name=pf,filename={pay},read-only=on', '-blockdev', 'driver=raw,node-name=pay,file=pf,read-only=on',
        '-device', 'virtio-blk-pci,drive=pay,serial=tools', '-netdev', f'user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:10809', '-device', 'virtio-net-pci,netdev=n0'])


def pat(blk, ver):
    return struct.pack('<QQ', blk, ver) * 32 if ver else bytes(512)        # one sector; version 0 = zeroes


def connect(port):
    h = nbd.NBD(); end = time.time() + 30
    while True:
        try: h.connect_tcp('127.0.0.1', str(port)); return h
        except nbd.Error:
            if time.time() > end: raise
            h = nbd.NBD(); time.sleep(0.2)


with Box(keep=o.keep) as box:
    say(f'seed {o.seed}'); pay = payload(box); say(f'payload {os.path.getsize(pay) >> 20} MiB'); data = box.path('data.raw'); box.run(['truncate', '-s', '512M', data])
    s = socket.socket(); s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]; s.close()
    allowed = {}      # sector number -> set of allowed versions; absent: {0}
    blkof = {}; ver = 0; bad = 0; nw = nf = 0
    for r in range(o.rounds + 1):
        g = boot(box, r == 0, pay, data, port, r); g.wait_line('@@ serving', 240); say(f'round {r}: serving')
        h = connect(port); size = h.get_size(); nb = size // B
        # ---- verify everything ever written --------------------------------------------------
        secs = sorted(allowed)
        for b in sorted({x // 8 for x in secs}):
            d = h.pread(B, b * B)
            for i in range(8):
                k = b * 8 + i
                if k not in allowed: continue
                got = d[i*512:i*512+512]; v = 0 if not any(got) else struct.unpack_from('<QQ', got)[1]
                if got != pat(b, v) or v not in allowed[k]:
                    bad += 1
                    if bad <= 5: say(f'  LOST: sector {k} holds version {v if got == pat(b, v) else "garbage"}, allowed {sorted(allowed[k])[:6]}')
                else: allowed[k] = {v}
        say(f'round {r}: {len(secs)} sectors checked, {bad} wrong')
        if bad or r == o.rounds: break
        # ---- write, flush, cut ---------------------------------------------------------------
        hot = R.sample(range(nb), min(nb, 400)); cut = threading.Event()
        def kill(): cut.set(); os.kill(g.p.pid, 9)
        tm = threading.Timer(o.seconds * R.uniform(0.5, 1.5), kill); tm.start()    # falls into whatever is in flight
        try:
            while True:
                n = R.choice([1, 1, 1, 2, 4, 16]); b = min(R.choice(hot), nb - n); ver += 1; op = R.random()
                ks = [(b + j) * 8 + i for j in range(n) for i in range(8)]
                v = 0 if op < 0.08 else ver; fua = 0.08 <= op < 0.12
                for k in ks: allowed.setdefault(k, {0}).add(v)
                if v == 0: h.zero(n * B, b * B)
                else: h.pwrite(b''.join(pat(b + j, v) * 8 for j in range(n)), b * B, nbd.CMD_FLAG_FUA if fua else 0)
                nw += 1
                for k in ks:
                    # unflushed older versions stay allowed until a flush; FUA makes this one durable now
                    if fua: allowed[k] = {v}
                    blkof[k] = v
                if R.random() < 0.05:
                    h.flush(); nf += 1
                    for k, lv in blkof.items(): allowed[k] = {lv}
                    blkof = {}
        except nbd.Error as e:
            if not cut.is_set(): say('  client:', e); bad += 1; tm.cancel(); kill()
        g.p.wait(); blkof = {}
        say(f'round {r}: power cut; {nw} writes, {nf} flushes so far')
    if not bad:
        h.shutdown(); g.type('stop'); g.wait_line('@@ done', 120); g.p.wait(30)
        for l in g.lines():
            if 'check' in l or 'FAIL' in l: say('guest:', l)
        bad += not any('@@ done 0' in l for l in g.lines())
    print(json.dumps({'mode': 'crashserver', 'ok': not bad, 'writes': nw, 'flushes': nf, 'rounds': o.rounds, 'seed': o.seed, 'total_s': round(time.time() - T0, 2)}))
    sys.exit(1 if bad else 0)
