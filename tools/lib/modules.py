# SPDX-License-Identifier: Apache-2.0
"""Compiles modules of the package with flags of one's own, beside the package's build and untouched by it.

What a module depends on, and how it is compiled, is read from Package.swift. Each Swift module is one compilation
(-wmo), made again when one of its sources, or a module below it, is newer. tools/fuzz and tools/simulate use it.
"""
import concurrent.futures
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMMON = ["-g", "-wmo", "-package-name", "strata", "-swift-version", "6", "-enable-experimental-feature", "Lifetimes"]


def files(folder, *endings):
    found = []
    for place, _, names in os.walk(os.path.join(ROOT, folder)):
        found += [os.path.join(place, name) for name in names if name.endswith(endings)]
    return sorted(found)


def newest(paths):
    return max((os.path.getmtime(path) for path in paths), default=0)


class Package:
    """The targets of Package.swift as far as they have no products of other packages among them."""

    def __init__(self, scratch, flags):
        self.scratch, self.flags = scratch, flags
        os.makedirs(scratch, exist_ok=True)
        text = self.describe()
        self.targets = {target["name"]: target for target in json.loads(text)["targets"]}
        self.stamps = {}

    def describe(self):
        manifest = os.path.join(ROOT, "Package.swift")
        kept = os.path.join(self.scratch, "package.json")
        if not os.path.exists(kept) or os.path.getmtime(kept) < os.path.getmtime(manifest):
            done = subprocess.run(["swift", "package", "--scratch-path", os.path.join(self.scratch, "spm"),
                                   "dump-package"], cwd=ROOT, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise SystemExit(done.stderr)
            with open(kept, "w", encoding="utf-8") as file:
                file.write(done.stdout)
        with open(kept, encoding="utf-8") as file:
            return file.read()

    def folder(self, name):
        return self.targets[name].get("path") or f"Sources/{name}"

    def depends(self, name):
        return [item["byName"][0] for item in self.targets[name]["dependencies"] if "byName" in item]

    def closure(self, names):
        """The modules and all below them, lower ones first."""
        order = []

        def visit(name):
            if name not in order:
                for below in self.depends(name):
                    visit(below)
                if name not in order:
                    order.append(name)

        for name in names:
            visit(name)
        return order

    def is_c(self, name):
        return not files(self.folder(name), ".swift")

    def build(self, names):
        """Compiles the modules and all below them; returns what a program that uses them is linked with."""
        order = self.closure(names)
        waiting, done = list(order), set()
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 2) as pool:
            running = {}
            while waiting or running:
                for name in [n for n in waiting if set(self.depends(n)) <= done]:
                    waiting.remove(name)
                    running[pool.submit(self.compile, name)] = name
                ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for job in ended:
                    job.result()
                    done.add(running.pop(job))
        words = self.import_words(order)
        for name in order:
            words += [path for path in [self.path(name + ".o")] if os.path.exists(path)]
            for setting in self.targets[name].get("settings", []):
                if "linkedLibrary" in setting["kind"]:
                    words.append("-l" + setting["kind"]["linkedLibrary"]["_0"])
        return words

    def path(self, name):
        return os.path.join(self.scratch, name)

    def import_words(self, order):
        words = ["-I", self.scratch]
        for name in order:
            if self.is_c(name):
                own = os.path.join(ROOT, self.folder(name), "module.modulemap")
                words += ["-Xcc", "-fmodule-map-file=" + (own if os.path.exists(own) else self.path(name + ".modulemap"))]
        return words

    def compile(self, name):
        folder = self.folder(name)
        below = self.closure([name])[:-1]
        stamp = max([newest(files(folder, ".swift", ".c", ".h", ".modulemap")), os.path.getmtime(__file__)]
                    + [self.stamps.get(other, 0) for other in below])
        if self.is_c(name):
            self.stamps[name] = stamp
            return self.compile_c(name, stamp)
        product = self.path(name + ".o")
        if not os.path.exists(product) or os.path.getmtime(product) < stamp:
            call(["swiftc"] + self.flags + COMMON + ["-parse-as-library", "-emit-module", "-emit-object",
                 "-module-name", name, "-o", product] + self.import_words(below) + files(folder, ".swift"), self.scratch)
        self.stamps[name] = os.path.getmtime(product)
        return None

    def compile_c(self, name, stamp):
        folder = os.path.join(ROOT, self.folder(name))
        headers = files(os.path.join(folder, "include"), ".h")
        if headers:
            with open(self.path(name + ".modulemap"), "w", encoding="utf-8") as file:
                lines = "".join(f'  header "{header}"\n' for header in headers)
                file.write(f"module {name} {{\n{lines}  export *\n}}\n")
        for source in files(folder, ".c"):
            product = self.path(name + ".o")
            if not os.path.exists(product) or os.path.getmtime(product) < stamp:
                call(["clang", "-O2", "-g", "-I", os.path.join(folder, "include"), "-c", source, "-o", product],
                     self.scratch)


def program(package, name, sources, modules, flags=()):
    """Links the sources with the modules; returns the program's path."""
    words = package.build(modules)
    product = package.path(name)
    objects = [word for word in words if word.endswith(".o")]
    if not os.path.exists(product) or os.path.getmtime(product) < newest(sources + objects + [__file__]):
        call(["swiftc"] + package.flags + COMMON + list(flags) + ["-use-ld=lld", "-module-name", name, "-o", product]
             + sources + words, package.scratch)
    return product


def call(words, folder):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(2)
