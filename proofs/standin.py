#!/usr/bin/env python3
"""Speaks pishrink's command line with e2fsprogs behind it, to test the judges themselves.

    standin capture SOURCE IMAGE [--headroom SIZE] [--no-shrink]     standin expand IMAGE

STANDIN_MODE=copy keeps the size, refuses what e2fsck complains about; =blind copies anything; =crash, =hang, =eat misbehave.
STANDIN_BREAK names one way of getting it wrong; a judge that does not notice is no judge.
"""

import os
import struct
import subprocess
import sys

from lib.ext4fs import Fs

BREAKS = ("exit", "source", "size", "content", "lost-file", "xattr", "bitmap", "padding", "journal-backup", "resize-inode", "backup-super",
          "backup-desc", "unused-not-zero", "owner", "hole", "unwritten")


def run(*words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def capture(source, image, flags):
    shrink = "--no-shrink" not in flags
    run("cp", "--sparse=always", source, image)
    code, said = run("e2fsck", "-fy", image)
    if code > 1:
        print("error: the filesystem is not sound: %s" % said.splitlines()[-1], file=sys.stderr)
        sys.exit(3)
    text = run("dumpe2fs", "-h", image)[1]
    features = next(l for l in text.splitlines() if l.startswith("Filesystem features"))
    kept = [f for f in ("bigalloc", "meta_bg", "sparse_super2") if f in features]
    if "has_journal" not in features and os.path.exists(source[:-4] + ".journal"):
        kept.append("external journal")
    if kept:
        print("kept at full size: " + ", ".join(kept))
        shrink = False
    if shrink:
        last = None
        while True:
            run("resize2fs", "-f", "-M", image)
            with open(image, "rb") as f:
                head = f.read(4096)
            blocks, bs = struct.unpack_from("<I", head, 1028)[0], 1024 << struct.unpack_from("<I", head, 1048)[0]
            if blocks == last:
                break
            last = blocks
        if "0" not in flags:
            run("resize2fs", "-f", image, "%dK" % min(blocks * bs // 1024 + 32768, os.stat(source).st_size // 1024))
            with open(image, "rb") as f:
                blocks = struct.unpack_from("<I", f.read(4096), 1028)[0]
        os.truncate(image, blocks * bs)


def in_inode(fs, numbers):
    """The inodes whose extents all lie in the inode itself: (inode, [(offset of the extent, physical block, logical block, ee_len)])."""
    for number in numbers:
        inode = fs.inode(number)
        count, depth = struct.unpack_from("<HxxH", inode.i_block, 2)
        if inode.flags & 0x80000 and depth == 0 and count:
            places = [12 + 12 * k for k in range(count)]
            fields = [struct.unpack_from("<IHHI", inode.i_block, place) for place in places]
            yield inode, [(inode.at + 40 + place, low | high << 32, logical, length)
                          for place, (logical, length, high, low) in zip(places, fields)]


def spoil(source, image, how):
    """Damages the result, with all checksums mended where that makes it harder to see."""
    if how == "exit":
        sys.exit(1)
    if how == "source":
        with open(source, "r+b") as f:
            f.seek(0x400 + 0x30)  # s_wtime
            f.write(b"\1\2\3\4")
    with open(image, "rb") as f:
        buf = bytearray(f.read())
    if how == "size":
        buf += bytes(8 << 20)
    fs = Fs(buf)
    files = [i for i in fs.live_inodes() if i > 11 and fs.inode(i).type == 0x8000 and fs.inode(i).links == 1 and not fs.inode(i).inline]
    with_data = [i for i in files if fs.inode(i).size > 3000 and fs.map(fs.inode(i))[0]]
    some = fs.inode(with_data[len(with_data) // 2])
    if how == "content":
        at = next(p for _, p, _, u in fs.map(some)[0] if not u) * fs.bs + 5
        buf[at] ^= 1
    elif how == "lost-file":
        root = fs.map(fs.inode(2))[0]
        block = root[0][1] * fs.bs
        at = 0
        while not (buf[block + at + 7] == 2 and buf[block + at + 6] > 3):
            at += struct.unpack_from("<H", buf, block + at + 4)[0]
        buf[block + at + 8] ^= 0x20
        fs.mend_tree(2)
    elif how == "xattr":
        inode = next(fs.inode(i) for i in files if fs.inode(i).file_acl)
        buf[(inode.file_acl + 1) * fs.bs - 1] ^= 1
        fs.mend_xattr_block(inode.file_acl)
    elif how == "bitmap":
        g = fs.groups - 1
        buf[fs.gd(g, "block_bitmap") * fs.bs] ^= 1
        fs.mend_bitmap(g, "block")
    elif how == "padding":
        g = fs.groups - 1
        buf[fs.gd(g, "block_bitmap") * fs.bs + fs.bs - 1] &= 0x7F
        fs.mend_bitmap(g, "block")
    elif how == "journal-backup":
        buf[1024 + 0x10C + 20] ^= 1
        fs.mend_super()
    elif how == "resize-inode":
        double = struct.unpack_from("<I", fs.inode(7).i_block, 52)[0]
        buf[double * fs.bs + fs.bs // 2 - 4] ^= 1
    elif how == "backup-super":
        at = fs.group_start(1) * fs.bs
        fs.set_sb("block_group_nr", 3, at)
        fs.mend_super(at)
    elif how == "backup-desc":
        buf[(fs.group_start(1) + 1) * fs.bs + 1] ^= 1
    elif how == "unused-not-zero":
        g, raw = next((g, fs.block(fs.gd(g, "block_bitmap"))) for g in range(fs.groups) if fs.gd(g, "free_blocks"))
        k = next(k for k in range(fs.group_blocks(g)) if not raw[k >> 3] >> (k & 7) & 1)
        buf[(fs.group_start(g) + k) * fs.bs + 9] = 1
    elif how == "owner":
        buf[some.at + 24] ^= 1  # times are not compared here
        fs.mend_inode(some.number)
    elif how == "hole":
        # One block written where there was none below: data moves up.
        inode = next(i for i, extents in in_inode(fs, files) if extents[0][2:] == (0, 1) and i.size < fs.bs)
        struct.pack_into("<I", buf, inode.at + 40 + 12, 1)
        struct.pack_into("<I", buf, inode.at + 4, fs.bs + 10)
        fs.mend_inode(inode.number)
    elif how == "unwritten":
        # A written extent, which every filesystem has: not each one has an unwritten one here.
        inode, (at, _, _, length) = next((i, e) for i, extents in in_inode(fs, with_data) for e in extents if e[3] < 32768)
        struct.pack_into("<H", buf, at + 4, length + 32768)
        fs.mend_inode(inode.number)
    with open(image, "wb") as f:
        f.write(buf)


def other_mode(mode, source, image):
    if mode == "crash":
        os.abort()
    if mode == "hang":
        subprocess.run(["sleep", "1000"])
    if mode == "eat":
        print(len(bytearray(os.urandom(1 << 20) * 1200)))
    if mode == "copy" and run("e2fsck", "-fn", source)[0]:
        print("error: the filesystem is not sound", file=sys.stderr)
        sys.exit(3)
    run("cp", "--sparse=always", source, image)
    sys.exit(0)


def main():
    if sys.argv[1] == "expand":
        run("e2fsck", "-fy", sys.argv[2])
        sys.exit(run("resize2fs", "-f", sys.argv[2])[0])
    source, image, flags = sys.argv[2], sys.argv[3], sys.argv[4:]
    if os.environ.get("STANDIN_MODE"):
        other_mode(os.environ["STANDIN_MODE"], source, image)
    capture(source, image, flags)
    if os.environ.get("STANDIN_BREAK"):
        spoil(source, image, os.environ["STANDIN_BREAK"])


if __name__ == "__main__":
    main()
