# SPDX-License-Identifier: Apache-2.0
"""The cells of tools/powercut --matrix: what an image can be like, each by a name.

A new feature of the format joins here with one line. `options` go to qemu-img create; `prepare` are commands that the
image sees after that, before anything is judged; `serve` are more words for the server; `resizes`, `bitmaps` and
`snapshots` are how often the disk grows, bitmaps change, and snapshots come and go meanwhile, about. A cell whose server
says that it does not support the image is skipped by name. `combined-SEED` is any of a great many cells: what
SEED draws from all of the above together.
"""
import collections
import random

Feature = collections.namedtuple("Feature", "cluster options base prepare serve resizes bitmaps packed create snapshots",
                                 defaults=(65536, "", None, (), "", 0, 0, False, "", 0))
LUKS = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=1"
SECRET = "--object secret,id=key,data=open-sesame"


def features():
    """Every cell by its name, in the order in which a rotating slice takes them."""
    cells = {}
    for bits in range(9, 22):
        base = ("raw", "qcow2", None)[bits % 3]
        cells[f"clusters-{1 << bits}"] = Feature(cluster=1 << bits, base=base)
    for bits in (1, 2, 4, 8, 16, 32, 64):
        cells[f"refcounts-{bits}"] = Feature(cluster=512 if bits in (8, 64) else 4096, options=f",refcount_bits={bits}")
    for cluster in (16384, 65536, 2097152):
        cells[f"subclusters-{cluster}"] = Feature(cluster=cluster, options=",extended_l2=on", base="qcow2")
    extended = ",extended_l2=on"
    cells["subclusters-alone"] = Feature(options=extended, resizes=8)
    cells["subclusters-packed"] = Feature(cluster=16384, options=extended, packed=True)
    cells["subclusters-preallocated"] = Feature(options=extended + ",preallocation=metadata", base="raw")
    cells["subclusters-snapshots"] = Feature(cluster=16384, options=extended, base="qcow2",
                                             prepare=("qemu-img snapshot -c one {image}",))
    cells["version-2"] = Feature(cluster=4096, options=",compat=0.10", base="raw")
    cells["lazy-refcounts"] = Feature(cluster=4096, options=",lazy_refcounts=on", base="qcow2")
    cells["resize"] = Feature(cluster=4096, resizes=8)
    cells["resize-base"] = Feature(cluster=512, base="qcow2", resizes=8)
    cells["resize-refcounts-64"] = Feature(cluster=512, options=",refcount_bits=64", resizes=8, bitmaps=6)
    cells["compressed-zlib"] = Feature(packed=True)
    cells["compressed-zlib-4096"] = Feature(cluster=4096, packed=True)
    cells["compressed-zstd"] = Feature(options=",compression_type=zstd", packed=True)
    packs = "--compress=on"
    cells["compress-on"] = Feature(serve=packs)
    cells["compress-on-4096"] = Feature(cluster=4096, serve=packs)
    cells["compress-on-zstd"] = Feature(cluster=4096, options=",compression_type=zstd", base="qcow2", serve=packs)
    cells["compress-on-subclusters"] = Feature(cluster=16384, options=extended, base="qcow2", serve=packs)
    cells["compress-on-snapshots"] = Feature(cluster=4096, packed=True, serve=packs,
                                             prepare=("qemu-img snapshot -c one {image}",))
    for bits in (1, 2):
        cells[f"compress-on-refcounts-{bits}"] = Feature(cluster=4096, options=f",refcount_bits={bits}", serve=packs)
    cells["snapshots"] = Feature(cluster=4096, base="qcow2", prepare=("qemu-img snapshot -c one {image}",))
    cells["snapshots-packed"] = Feature(packed=True, prepare=("qemu-img snapshot -c one {image}",))
    cells["snapshots-live"] = Feature(cluster=4096, base="qcow2", snapshots=6)
    cells["snapshots-live-lazy"] = Feature(options=",lazy_refcounts=on", snapshots=6)
    cells["snapshots-live-subclusters"] = Feature(cluster=16384, options=extended, base="raw", snapshots=6)
    cells["snapshots-live-compress-on"] = Feature(cluster=4096, serve=packs, snapshots=6)
    # beside snapshots, bitmaps may be lost in a crash, but never be narrower than the truth (decision 0024)
    cells["snapshots-live-bitmaps"] = Feature(cluster=4096, base="qcow2", snapshots=6, bitmaps=12)
    cells["snapshots-bitmaps"] = Feature(cluster=4096, bitmaps=12, prepare=("qemu-img snapshot -c one {image}",))
    cells["bitmaps-changing"] = Feature(cluster=4096, bitmaps=20)
    cells["bitmaps"] = Feature(cluster=4096, prepare=("qemu-img bitmap --add {image} one",
                                                      "qemu-img bitmap --add --disable {image} two"))
    cells["luks"] = Feature(options="," + LUKS, create=SECRET, serve="--key-file {secret}")
    for name, raw in (("data-file", ""), ("data-file-raw", ",data_file_raw=on")):
        cells[name] = Feature(options=",data_file=data" + raw)
    cells["data-file-subclusters"] = Feature(cluster=16384, options=",data_file=data" + extended)
    cells["data-file-raw-subclusters"] = Feature(options=",data_file=data,data_file_raw=on" + extended)
    cells["data-file-luks"] = Feature(cluster=4096, options=",data_file=data," + LUKS, create=SECRET, serve="--key-file {secret}")
    cells["data-file-4096"] = Feature(cluster=4096, options=",data_file=data,lazy_refcounts=on")
    return cells


def combined(seed):
    """The cell that `seed` draws: features of the format that go together, in one image."""
    chance = random.Random(f"combined {seed}")

    def often(share):
        return chance.random() < share

    is_new = not often(0.1)                              # version 3
    cluster = chance.choice([512, 4096, 16384, 16384, 65536, 65536, 262144])
    has_data_file, is_encrypted = is_new and often(0.15), often(0.15)
    is_encrypted = is_encrypted and not has_data_file
    is_packed = not has_data_file and not is_encrypted and often(0.25)
    base = None if is_packed or has_data_file else chance.choice([None, "raw", "qcow2"])
    options, serve, prepare = "", "", []
    if is_new:
        options += f",refcount_bits={chance.choice([1, 2, 8, 16, 16, 16, 32, 64])}"
        options += ",lazy_refcounts=on" if often(0.3) else ""
        options += ",compression_type=zstd" if often(0.3) else ""
        options += ",extended_l2=on" if cluster >= 16384 and not has_data_file and often(0.4) else ""
        options += ",data_file=data" + chance.choice(["", ",data_file_raw=on"]) if has_data_file else ""
    else:
        options += ",compat=0.10"
    options += "," + LUKS if is_encrypted else ""
    # of what is encrypted, clusters that have a place and were never written read as noise, QEMU's too
    options += ",preallocation=metadata" if not is_packed and not is_encrypted and base is None and often(0.2) else ""
    serve += "--key-file {secret} " if is_encrypted else ""
    # a snapshot counts each cluster twice, and several packed ones share a cluster
    narrow = any(f"refcount_bits={bits}," in options + "," for bits in ((1, 2) if is_packed else (1,)))
    has_snapshots = not has_data_file and not narrow and often(0.4)
    prepare += ["qemu-img snapshot -c one {image}"] if has_snapshots and not is_encrypted else []
    bitmaps = chance.choice([6, 20]) if is_new and often(0.35) else 0
    resizes = 8 if is_new and not has_data_file and often(0.3) else 0
    # each takes one more count of what it shares; the judge reads none that is encrypted, and each whole: no long ones
    has_room = is_new and not resizes and not is_packed and cluster > 512 and not any(f"refcount_bits={bits}," in options + "," for bits in (1, 2))
    snapshots = 6 if has_snapshots and has_room and not is_encrypted and often(0.4) else 0
    return Feature(cluster, options, base, tuple(prepare), serve, resizes, bitmaps, is_packed, SECRET if is_encrypted else "",
                   snapshots)


def feature(name):
    """The cell of that name; raises KeyError when there is none."""
    kind, _, seed = name.rpartition("-")
    return combined(int(seed)) if kind == "combined" and seed.isdigit() else features()[name]


# How many of the cells in a row over all of them are drawn.
COMBINED = 12

# Named here so that nobody believes them to be judged.
MISSING = {}
