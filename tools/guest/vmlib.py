# SPDX-License-Identifier: Apache-2.0
"""vmlib.py - small helpers for the guest tests: QMP, QEMU start-up, serial log, stand-in servers.

No dependency outside the standard library. QMP is raw JSON lines over a UNIX socket (PyPI's qemu.qmp
does the same asynchronously). Every process started here is ended by its own pid in close().
"""
import json, os, shutil, socket, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))


def need(cmds):
    """need({command: package}): install the Debian packages of the commands that are not there.
    A key that starts with py: is a module of the distribution's python3."""
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    def there(c):
        if c.startswith('py:'): return subprocess.run([sys.executable, '-c', 'import ' + c[3:]], stderr=subprocess.DEVNULL).returncode == 0
        return shutil.which(c)
    miss = sorted({p for c, p in cmds.items() if not there(c)})
    if miss:
        subprocess.run(['apt-get', 'update', '-qq'], stdout=subprocess.DEVNULL)
        subprocess.run(['apt-get', 'install', '-y', '-qq', '--no-install-recommends', *miss], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'})


BASE = {'qemu-system-x86_64': 'qemu-system-x86', 'qemu-img': 'qemu-utils', 'nbdcopy': 'libnbd-bin', 'cpio': 'cpio', 'debugfs': 'e2fsprogs'}
BASE_NBD = {**BASE, 'py:nbd': 'python3-libnbd'}


class QMPError(Exception):
    pass


class QMP:
    """Synchronous QMP client. cmd() returns the reply, events pile up in .events."""
    def __init__(self, path, timeout=30, trace=None):
        self.trace, self.events, self.name = trace, [], os.path.basename(path)
        end = time.time() + timeout
        while True:
            self.s = socket.socket(socket.AF_UNIX)
            try:
                self.s.connect(path); break
            except OSError:
                self.s.close()
                if time.time() > end: raise
                time.sleep(0.05)
        self.f = self.s.makefile('rb')
        self.greeting = json.loads(self.f.readline())
        self.cmd('qmp_capabilities')

    def _msg(self, timeout):
        self.s.settimeout(timeout)
        line = self.f.readline()
        if not line: raise QMPError(f'{self.name}: QMP closed')
        m = json.loads(line)
        if 'event' in m:
            if self.trace and m['event'] not in ('JOB_STATUS_CHANGE', 'RTC_CHANGE', 'NIC_RX_FILTER_CHANGED'):
                self.trace(f'{self.name} <- EVENT {m["event"]} {json.dumps(m.get("data", {}))}')
            self.events.append(m)
        return m

    def cmd(self, name, /, timeout=120, quiet=False, **args):
        args = {k.replace('_', '-'): v for k, v in args.items()}
        m = {'execute': name}
        if args: m['arguments'] = args
        if self.trace and not quiet: self.trace(f'{self.name} -> {json.dumps(m)}')
        self.s.sendall(json.dumps(m).encode() + b'\n')
        while True:
            r = self._msg(timeout)
            if 'return' in r: return r['return']
            if 'error' in r: raise QMPError(f'{name}: {r["error"]["desc"]}')

    def wait_event(self, pred, timeout=300):
        """pred(event dict) -> truthy. Looks at queued events first; consumes up to the match."""
        if isinstance(pred, str):
            n = pred; pred = lambda e: e['event'] == n
        end = time.time() + timeout
        while True:
            while self.events:
                e = self.events.pop(0)
                if pred(e): return e
            self._msg(max(0.1, end - time.time()))

    def wait_migration(self, states, timeout=300):
        end = time.time() + timeout
        while time.time() < end:
            r = self.cmd('query-migrate', quiet=True)
            if r.get('status') in states: return r
            if r.get('status') in ('failed', 'cancelled'): raise QMPError(f'migration {r}')
            time.sleep(0.05)
        raise QMPError(f'migration not in {states}: {r}')


class Box:
    """A temporary directory and the processes that live with it."""
    def __init__(self, keep=False):
        self.dir = tempfile.mkdtemp(prefix='vmt.'); self.procs = []; self.keep = keep

    def path(self, n): return os.path.join(self.dir, n)

    def spawn(self, argv, name='p', **kw):
        log = open(self.path(name + '.err'), 'wb')
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **kw)
        p.logname = self.path(name + '.err'); self.procs.append(p); return p

    def run(self, argv, **kw):
        r = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
        if r.returncode: raise RuntimeError(f'{" ".join(argv)}: rc {r.returncode}\n{r.stdout}')
        return r.stdout

    def stop(self, p, timeout=10):
        if p.poll() is None:
            p.terminate()
            try: p.wait(timeout)
            except subprocess.TimeoutExpired: p.kill(); p.wait()
        if p in self.procs: self.procs.remove(p)

    def close(self):
        for p in list(self.procs): self.stop(p)
        if not self.keep: shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self): return self
    def __exit__(self, *a): self.close()


def wait_sock(path, timeout=20):
    end = time.time() + timeout
    while time.time() < end:
        s = socket.socket(socket.AF_UNIX)
        try: s.connect(path); return
        except OSError: time.sleep(0.05)
        finally: s.close()
    raise RuntimeError(f'no server on {path}')


def make_initrd(box, guest, job, env, name='initrd'):
    """base initramfs + a second, 4-aligned newc archive with /job.sh and /job.env"""
    out = box.path(name); job = job if os.path.exists(job) else f'{HERE}/guest/job-{job}.sh'
    d = box.path(name + '.d'); os.makedirs(d, exist_ok=True); shutil.copy(job, d + '/job.sh')
    with open(d + '/job.env', 'w') as f:
        for k, v in env.items(): f.write(f"{k}='{v}'\n")
    j = subprocess.run(['cpio', '-o', '-H', 'newc', '--quiet'], cwd=d, input=b'job.sh\njob.env\n', stdout=subprocess.PIPE, check=True).stdout
    base = open(guest + '/initramfs.cpio.gz', 'rb').read()
    with open(out, 'wb') as f: f.write(base + b'\0' * (-len(base) % 4) + j)
    return out


class Guest:
    """One QEMU. disk: list of -blockdev option strings, the last of which is node 'dut'."""
    def __init__(self, box, name, guest, initrd, disk, accel='tcg', mem=384, incoming=False, qemu='qemu-system-x86_64',
                 trace=None, device='virtio-blk-pci,drive=dut,serial=dut,id=vd0', extra=()):
        self.name, self.log, self.ser = name, box.path(name + '.log'), box.path(name + '.ser')
        q = box.path(name + '.qmp'); open(self.log, 'w').close()
        a = [qemu, '-name', name, '-accel', accel, '-cpu', 'Nehalem,+rdrand' if accel == 'tcg' else 'host', '-M', 'q35', '-m', str(mem),
             '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot',
             '-kernel', guest + '/vmlinux', '-initrd', initrd, '-append', 'console=ttyS0 quiet loglevel=4 panic=-1',
             '-chardev', f'socket,id=ser,path={self.ser},server=on,wait=off,logfile={self.log}', '-serial', 'chardev:ser',
             '-chardev', f'socket,id=mon,path={q},server=on,wait=off', '-mon', 'chardev=mon,mode=control']
        for d in disk: a += ['-blockdev', d]
        a += ['-device', device]
        if incoming: a += ['-incoming', 'defer']
        a += list(extra)
        self.p = box.spawn(a, name); self.box = box
        self.qmp = QMP(q, trace=trace)

    def lines(self):
        return [l.rstrip('\r') for l in open(self.log, errors='replace').read().split('\n')]

    def seq(self):
        n = [int(l.split()[2]) for l in self.lines()[:-1] if l.startswith('@@ seq ')]
        return n[-1] if n else 0

    def wait_seq(self, n, timeout=300):
        end = time.time() + timeout
        while self.seq() < n:
            if time.time() > end: raise RuntimeError(f'{self.name}: seq stays at {self.seq()} < {n}\n' + '\n'.join(self.lines()[-15:]))
            if self.p.poll() is not None: raise RuntimeError(f'{self.name}: qemu ended\n' + '\n'.join(self.lines()[-15:]) + open(self.p.logname).read())
            time.sleep(0.1)

    def wait_line(self, text, timeout=300):
        end = time.time() + timeout
        while not any(text in l for l in self.lines()):
            if time.time() > end or (self.p.poll() is not None and not any(text in l for l in self.lines())):
                raise RuntimeError(f'{self.name}: no {text!r}\n' + '\n'.join(self.lines()[-15:]) + open(self.p.logname).read())
            time.sleep(0.1)
        return [l for l in self.lines() if text in l][-1]

    def type(self, text):
        s = socket.socket(socket.AF_UNIX); s.connect(self.ser); s.sendall(text.encode() + b'\n'); time.sleep(0.3); s.close()


def nbd_disk(sock, export='', node='dut', discard='unmap'):
    """-blockdev strings for an NBD export as guest disk `node` (raw over nbd, as libvirt does it)"""
    return [f'driver=nbd,node-name={node}-nbd,server.type=unix,server.path={sock},export={export},discard={discard}',
            f'driver=raw,node-name={node},file={node}-nbd,discard={discard}']


def uri(sock, export=''):
    return f'nbd+unix:///{export}?socket={sock}'
