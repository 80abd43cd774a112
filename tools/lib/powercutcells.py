# SPDX-License-Identifier: Apache-2.0
"""The cells of tools/powercut --matrix: what an image can be like, each by a name.

A new feature of the format joins here with one line. `options` go to qemu-img create; `prepare` are commands that the
image sees after that, before anything is judged; `serve` are more words for the server; `read` is how QEMU opens the
image when it judges, with {path}. A cell whose server says that it does not support the image is skipped by name.
"""
import collections

Feature = collections.namedtuple("Feature", "cluster options base prepare serve read resizes packed create",
                                 defaults=(65536, "", None, (), "", "", 0, False, ""))
LUKS = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=20"
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
    cells["bitmaps"] = Feature(cluster=4096, prepare=("qemu-img bitmap --add {image} one",
                                                      "qemu-img bitmap --add --disable {image} two"))
    cells["luks"] = Feature(options="," + LUKS, create=SECRET, serve="--key-file {secret}",
                            read="driver=qcow2,encrypt.key-secret=key,file.driver=file,file.filename={path}")
    return cells


# Named here so that nobody believes them to be judged.
MISSING = {"data-file": "two files have to be recorded in one order, with a flush that is a barrier for one of them only"}
