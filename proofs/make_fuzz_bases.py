#!/usr/bin/env python3
"""Makes what the fuzz targets damage: testdata/fuzz/bases, and a first input or two of each target.

    proofs/make_fuzz_bases.py            # writes into testdata/fuzz

The filesystems are tiny, with all that has metadata of its own: trees of extents and of pointers, indexed and inline
directories, attributes in inodes, blocks and inodes, hard links, quota, orphans, dirty journals. Contents are repetitive, so
that a base packs into some kilobytes. Where the kernel puts blocks differs from run to run, so the result is kept in the
repository; inputs say where they damage a base by numbers, so new bases make old inputs mean something else.
Needs root, loop devices, e2fsprogs, dosfstools, mtools, fdisk, gdisk, zstd and the packers.
"""

import contextlib
import gzip
import bz2
import lzma
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import io


from lib import fsfill
from lib.matrix_cases import E142, E143, E147, EXT3
from lib.tools import fsck, mounted, require_tools, run

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")

OUT = os.path.join(ROOT, "testdata", "fuzz")
KIB, MIB = 1 << 10, 1 << 20
GROUPS = ["-g", "256", "-N", "240", "-E", "resize=16m"]


def ext4(features, size=3 * MIB, block=1024, *more, inode=256, kind="ext4"):
    return {"features": features, "size": size, "block": block, "args": list(more), "inode": inode, "kind": kind}


FILESYSTEMS = {
    "today": dict(ext4(E147 + ",^resize_inode", 3 * MIB, 1024, "-E", "orphan_file_size=4k"), dirty=False),
    "dirty": dict(ext4(E143, 3 * MIB), dirty=True),
    "uninit": dict(ext4(E142 + ",^flex_bg", 3 * MIB, inode=128), dirty=True),
    "ext3": dict(ext4(EXT3, 3 * MIB, inode=128, kind="ext3"), dirty=True),
    "inside": dict(ext4(E143 + ",^has_journal,inline_data,ea_inode", 2 * MIB), dirty=False),
    "quota": dict(ext4(E143 + ",^has_journal", 2 * MIB), dirty=False, quota=True),
    "pages": dict(ext4(E143 + ",^has_journal", 4 * MIB, 4096), dirty=False),
    "clusters": dict(ext4(E143 + ",bigalloc", 4 * MIB, 1024, "-C", "2048"), dirty=True),
}


def text(name, size):
    unit = ("%s " % name).encode()
    return (unit * (size // len(unit) + 1))[:size]


def put(path, data, at=0):
    with open(path, "r+b" if os.path.exists(path) else "wb", buffering=0) as f:
        f.seek(at)
        f.write(data)


def setxattr(path, name, value):
    with contextlib.suppress(OSError):
        os.setxattr(path, name, value, follow_symlinks=False)


def fill(root, block):
    at = lambda *parts: os.path.join(root, *parts)
    os.makedirs(at("a/b/c/d"))
    put(at("a/one"), text("one", 5000))
    for name in ("a/two", "a/b/three", "four"):
        os.link(at("a/one"), at(name))
    for length in (20, 59, 60, 61, 300):
        os.symlink(("s" * length)[:block - 1], at("a/link-%d" % length))
    os.mkfifo(at("a/fifo"))
    os.mknod(at("a/null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkdir(at("attributes"))
    for i in range(6):
        path = at("attributes/f%d" % i)
        put(path, text("f%d" % i, 100 * i))
        setxattr(path, "user.small", b"value %d" % i)
        if i % 2:
            setxattr(path, "user.shared", b"the same on all of them " * 9)
        if i == 4:
            setxattr(path, "user.own", text("own", block * 5 // 8))
        if i == 2:
            setxattr(path, "system.posix_acl_access", fsfill.acl([(1000 + k, 5) for k in range(9)]))
            setxattr(path, "user.huge", text("huge", 3 * block))
    os.mkdir(at("names"))
    # An index has several leaves.
    for i in range(56 if block == 1024 else 70):
        put(at("names/%02d-" % i + "n" * (70 if block == 1024 else 200)), b"")
    os.mkdir(at("inline"))
    for size in (3, 59, 61, 140):
        put(at("inline/i%d" % size), text("i", size))
    for i in range(3):
        os.mkdir(at("inline/d%d" % i))
        for k in range(3 * i):
            put(at("inline/d%d/%s%d" % (i, "n" * 8, k)), b"")
    # A tree of several nodes, an unwritten extent, and a block far out.
    pieces = 130 if block == 1024 else 40
    for i in range(pieces):
        put(at("scattered"), text("piece %d" % i, block), at=2 * i * block)
    with open(at("unwritten"), "wb", buffering=0) as f:
        with contextlib.suppress(OSError):
            fsfill.fallocate(f.fileno(), 0, 0, 12 * block)
        os.pwrite(f.fileno(), text("written", 2 * block), 5 * block)
    put(at("far"), text("far", block), at=66000 * block)
    put(at("near"), text("near", block), at=20 * block)
    put(at("middle"), text("middle", block), at=400 * block)
    for i in range(9):
        put(at("gone-%d" % i), text("gone", 3000))
    fsfill.sync_fs(root)
    for i in range(9):
        os.unlink(at("gone-%d" % i))


def make_dirty(root, image, out):
    """Leaves transactions, revoked blocks and orphans in the journal, and copies the card while it is mounted."""
    at = lambda *parts: os.path.join(root, *parts)
    for turn in range(3):
        os.mkdir(at("turn-%d" % turn))
        for i in range(8):
            put(at("turn-%d/%d" % (turn, i)), text("turn", 700))
        fsfill.sync_fs(root)
    # Directory blocks that were logged and are freed are revoked.
    shutil.rmtree(at("turn-0"))
    fsfill.sync_fs(root)
    put(at("open"), text("open", 30 * KIB))
    put(at("open-too"), text("open-too", 2000))
    held = [open(at(name), "r+b") for name in ("open", "open-too")]
    fsfill.sync_fs(root)
    for name in ("open", "open-too"):
        os.unlink(at(name))
    put(at("last"), text("last", 3000))
    fsfill.sync_fs(root)
    run(["cp", image, out])
    for f in held:
        f.close()


def make_filesystem(name, spec, work):
    image, out = os.path.join(work, name + ".img"), os.path.join(work, name + ".out")
    with open(image, "wb") as f:
        f.truncate(spec["size"])
    groups = [word for word in GROUPS if spec["size"] and word]
    if any("orphan_file_size" in word for word in spec["args"]) or "^resize_inode" in spec["features"]:
        groups = GROUPS[:4]
    journal = [] if "^has_journal" in spec["features"] else ["-J", "size=%d" % (1 if spec["block"] == 1024 else 4)]
    run(["mke2fs", "-q", "-F", "-t", spec["kind"], "-b", spec["block"], "-I", spec["inode"], "-O", spec["features"], "-m", "1",
         "-U", "01234567-89ab-4cde-8f01-23456789abcd", "-E", "lazy_itable_init=0"] + journal + groups + spec["args"] + [image])
    with mounted(image, "nodelalloc" if spec["kind"] == "ext4" else "", spec["kind"]) as root:
        fill(root, spec["block"])
        if spec["dirty"]:
            make_dirty(root, image, out)
    if not spec["dirty"]:
        shutil.move(image, out)
    if spec.get("quota"):
        run(["tune2fs", "-O", "project", out])
        run(["tune2fs", "-Q", "usrquota,grpquota,prjquota", out])
        run(["e2fsck", "-fy", out], ok=(0, 1))
    check = out
    if spec["dirty"]:
        check = os.path.join(work, "replayed")
        run(["cp", out, check])
        run(["e2fsck", "-p", check], ok=(0, 1))
    complaint = fsck(check)
    if complaint:
        sys.exit("%s is not sound: %s" % (name, complaint))
    return out


def stamped(image, start, length):
    """Says in each block where it is, so that a misplaced one shows."""
    with open(image, "r+b") as f:
        for at in range(start, start + length, 4096):
            f.seek(at)
            f.write(b"byte %d " % at)


def splice(image, start, part):
    with open(part, "rb") as f:
        data = f.read()
    with open(image, "r+b") as f:
        f.seek(start)
        f.write(data)


def make_parts(work):
    small, swap = os.path.join(work, "small.img"), os.path.join(work, "swap.img")
    for path, size in ((small, 1200 * KIB), (swap, 512 * KIB)):
        with open(path, "wb") as f:
            f.truncate(size)
    run(["mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-g", "256", "-N", "32", "-U", "01234567-89ab-4cde-8f01-23456789abcd", small])
    run(["mkswap", "-q", "-U", "01234567-89ab-4cde-8f01-23456789abce", swap])
    return small, swap


def make_disks(work):
    small, swap = make_parts(work)
    disks = {}

    def disk(name, size=4 * MIB):
        disks[name] = os.path.join(work, name + ".img")
        with open(disks[name], "wb") as f:
            f.truncate(size)
        return disks[name]

    image = disk("mbr")
    table = "label: dos\nlabel-id: 0x1234abcd\nstart=64,size=960,type=c,bootable\nstart=1024,size=7000,type=5\n" \
            "start=1088,size=2400,type=83\nstart=3584,size=1024,type=82\nstart=4736,size=1000,type=da\n"
    subprocess.run(["sfdisk", "-q", "--no-reread", image], input=table.encode(), check=True)
    stamped(image, 64 * 512, 960 * 512)
    stamped(image, 4736 * 512, 1000 * 512)
    splice(image, 1088 * 512, small)
    splice(image, 3584 * 512, swap)

    for name, hybrid in (("gpt", False), ("hybrid", True)):
        image = disk(name)
        run(["sgdisk", "-a", "8", "-U", "01234567-89AB-4CDE-8F01-23456789ABCD", "-n", "1:64:1023", "-t", "1:0700", "-c", "1:boot",
             "-n", "2:1024:3423", "-n", "3:3584:4607", "-t", "3:8200", image])
        if hybrid:
            run(["sgdisk", "-h", "1:2", image])
        stamped(image, 64 * 512, 960 * 512)
        splice(image, 1024 * 512, small)
        splice(image, 3584 * 512, swap)

    image = disk("gpt4k")
    device = run(["losetup", "--show", "-f", "--sector-size", "4096", image]).strip()
    try:
        table = "label: gpt\nlabel-id: 01234567-89AB-4CDE-8F01-23456789ABCD\nfirst-lba: 6\nstart=16,size=112,name=boot\nstart=128,size=300\nstart=448,size=128,type=S\n"
        subprocess.run(["sfdisk", "-q", "--no-reread", device], input=table.encode(), check=True)
    finally:
        run(["losetup", "-d", device])
    stamped(image, 16 * 4096, 112 * 4096)
    splice(image, 128 * 4096, small)
    splice(image, 448 * 4096, swap)

    for bits, size, more in ((12, 400 * KIB, []), (16, 2400 * KIB, ["-s", "1"]), (32, 34 * MIB, ["-s", "1"])):
        image = disk("fat%d" % bits, size)
        run(["mkfs.vfat", "-F", bits, "-i", "1A2B3C4D", "-n", "BOOT%d" % bits] + more + [image])
        for name, length in (("config.txt", 3000), ("a rather long name.text", 900)):
            path = os.path.join(work, name)
            with open(path, "wb") as f:
                f.write(text(name, length))
            run(["mcopy", "-i", image, path, "::" + name])
        run(["mmd", "-i", image, "::sub"])
        run(["mcopy", "-i", image, os.path.join(work, "config.txt"), "::sub/again.txt"])
    return disks


# --- first inputs ---------------------------------------------------------------------

def damage(base, flags, amount, *patches):
    head = struct.pack("<BBH", base, flags, amount)
    return head + b"".join(struct.pack("<HHBBHQ", *patch) for patch in patches)


def first_inputs(work):
    rng = random.Random("first inputs")
    patch = lambda: (rng.randrange(400), rng.randrange(64), rng.randrange(12), rng.randrange(4), rng.randrange(400), rng.randrange(1 << rng.randrange(1, 64)))
    found = {}
    for target, bases in (("ext4", 7), ("journal", 3), ("mbr", 1), ("gpt", 3), ("fat", 3)):
        inputs = [damage(base, flags, amount) for base in range(bases) for flags, amount in ((0, 0), (2, 3000), (12, 77))]
        inputs += [damage(i % bases, (0, 0, 2, 4, 8, 1)[i % 6], rng.randrange(4000), *[patch() for _ in range(1 + i % 3)]) for i in range(12)]
        if target in ("ext4", "journal"):
            # Those with clusters came later.
            inputs += [damage(bases, flags, amount, *[patch() for _ in range(more)]) for flags, amount, more in ((0, 0, 0), (12, 77, 0), (4, 900, 2))]
        found[target] = inputs
    image = text("an image", 3000) + bytes(20000) + rng.randbytes(500)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("card.img", image)
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("card.img", image[:700])
    zstd = lambda data, *args: subprocess.run(["zstd", "-q", "-c", *args], input=data, stdout=subprocess.PIPE, check=True).stdout
    found["gzip"] = [gzip.compress(image, mtime=0), gzip.compress(b"", mtime=0), gzip.compress(b"first", mtime=0) + gzip.compress(b"second", mtime=0)]
    found["bzip2"] = [bz2.compress(image), bz2.compress(b""), bz2.compress(b"first") + bz2.compress(b"second")]
    found["xz"] = [lzma.compress(image, check=check) for check in (lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_NONE)]
    found["xz"] += [subprocess.run(["xz", "-c", "--block-size=8192"], input=image, stdout=subprocess.PIPE, check=True).stdout + bytes(4)]
    found["zstd"] = [zstd(image), zstd(b""), zstd(image, "--no-check") + zstd(b"more"), b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd(b"after")]
    found["zip"] = [zipped.getvalue(), stored.getvalue()]

    sparse = os.path.join(work, "sparse")
    with open(sparse, "wb") as f:
        f.write(b"first")
        f.seek(40000)
        f.write(b"second")
        f.truncate(100000)
    made = run(["bmaptool", "create", sparse]).encode()
    old = b'<?xml version="1.0" ?>\n<bmap version="1.2">\n<ImageSize> 100000 </ImageSize>\n<BlockSize> 4096 </BlockSize>\n<BlocksCount> 25 </BlocksCount>\n' \
          b'<MappedBlocksCount> 2 </MappedBlocksCount>\n<BlockMap>\n<Range> 0 </Range>\n<Range> 9 </Range>\n</BlockMap>\n</bmap>\n'
    found["bmap"] = [made[made.index(b"<?xml"):], old]

    entry = lambda number, name, length=None, kind=1: struct.pack("<IHBB", number, length or (8 + len(name) + 3) // 4 * 4, len(name), kind) + name + bytes(-len(name) % 4)
    dots = entry(11, b".", 12, 2) + entry(2, b"..", 12, 2)
    leaf = dots + entry(12, b"a-file") + entry(0, b"unused") + entry(13, b"another-file")
    leaf += entry(14, b"the-last", 1012 - len(leaf)) [:1012 - len(leaf)]
    leaf = leaf.ljust(1012, b"\0") + struct.pack("<IHBBI", 0, 12, 0, 0xDE, 0)
    index = entry(11, b".", 12, 2) + entry(2, b"..", 1012, 2)[:12] + struct.pack("<IBBBB", 0, 1, 8, 0, 0) + struct.pack("<HHI", 123, 3, 1) + struct.pack("<II", 500, 2) * 2
    node = struct.pack("<IHBB", 0, 1024, 0, 0) + struct.pack("<HHI", 126, 2, 1) + struct.pack("<II", 900, 3)
    found["directory"] = [b"\0" + leaf, b"\0" + index, b"\0" + node, b"\3" + dots]
    attribute = lambda name, index, offs, inum, size: struct.pack("<BBHIII", len(name), index, offs, inum, size, 0) + name + bytes(-len(name) % 4)
    block = struct.pack("<IIIII", 0xEA020000, 2, 1, 0, 0).ljust(32, b"\0") + attribute(b"mime", 1, 1000, 0, 5) + attribute(b"big", 1, 0, 77, 9000)
    slot = bytearray(128) + struct.pack("<H", 32).ljust(32, b"\0") + struct.pack("<I", 0xEA020000) + attribute(b"data", 7, 40, 0, 30) + attribute(b"k", 1, 20, 0, 4)
    struct.pack_into("<I", slot, 32, 0x10000000)
    slot[44:56] = entry(12, b"x", 12)
    found["xattr"] = [b"\0" + block, b"\x81" + bytes(slot), b"\x82" + bytes(slot)]

    piece = lambda at, data: struct.pack("<I", at)[:3] + bytes([len(data)]) + data
    boot = open(os.path.join(work, "fat12.img"), "rb").read(96)
    super_block = open(os.path.join(work, "today.out"), "rb").read(2048)[1024:1024 + 0x98]
    found["volume"] = [
        piece(4086, b"SWAPSPACE2") + piece(1024, struct.pack("<III", 1, 60, 0)), piece(0, b"LUKS\xba\xbe\0\2"), piece(65536 + 64, b"_BHRfS_M"), piece(0, b"XFSB"),
        piece(3, b"NTFS    ") + piece(510, b"\x55\xaa"), piece(0, b"hsqs"), piece(1024, b"\x10\x20\xf5\xf2"), piece(512, b"LABELONE") + piece(536, b"LVM2 001"),
        piece(0, boot) + piece(510, b"\x55\xaa"), piece(1024, super_block) + piece(1024 + 0x98, bytes(200)), piece(1080, b"\x53\xef")]
    return found


def main():
    require_tools()
    bases = os.path.join(OUT, "bases")
    shutil.rmtree(bases, ignore_errors=True)
    os.makedirs(bases)
    with tempfile.TemporaryDirectory(prefix="fuzz-bases-") as work:
        images = {name: make_filesystem(name, spec, work) for name, spec in FILESYSTEMS.items()}
        images.update(make_disks(work))
        for name, image in images.items():
            run(["zstd", "-q", "-f", "-19", "--no-check", image, "-o", os.path.join(bases, name + ".img.zst")])
        for target, inputs in first_inputs(work).items():
            os.makedirs(os.path.join(OUT, target), exist_ok=True)
            for number, data in enumerate(inputs):
                with open(os.path.join(OUT, target, "first-%02d" % number), "wb") as f:
                    f.write(data)
    total = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(OUT) for name in names)
    print("make_fuzz_bases: testdata/fuzz, %d bytes" % total)


if __name__ == "__main__":
    main()
