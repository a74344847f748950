#!/usr/bin/env python3
"""Damages sound filesystems field by field, mends the checksums, and watches what `pishrink capture` does.

    proofs/mutate.py [--seed N] [--count N | --minutes M] [--jobs 2] [--kinds a,b] [--bases a,b] [--work FOLDER]
    proofs/mutate.py --replay FILE...           judges saved inputs (.img or .img.zst) again; exit 1 if any still offends
    proofs/mutate.py --grow ...                 judges `pishrink expand` on the damaged filesystem, with more room behind it
    proofs/mutate.py --options="--no-shrink" --disk ...    other options; on a disk with a partition behind that has to move

The program is $PISHRINK (default target/release/pishrink, else target/debug/pishrink), run as
`capture IN OUT --headroom 0` with a time limit of 60 s and 1 GiB of resident memory.  The base images (8 to 16 MiB, many groups, made
once by the kernel, kept in FOLDER/bases; needs root for that) carry the features of all eras; each mutation changes 1 to 3 fields of superblock,
descriptors, bitmaps, inodes, extent nodes, indirect blocks, directories, htree nodes, xattrs, resize inode, journal superblock, orphans or quota files, and
then stores the right checksum of every structure it touched (proofs/lib/ext4fs.py).

Allowed: refused (exit 3, one clear error line) — or an image on which e2fsck -fn exits 0 and whose names show what could be read
of the damaged source — or, where the program says that it does not understand the filesystem, a copy of every byte.  What is printed, and saved (compressed) in FOLDER/found:
    1 crash      panics, signals, hangs, too much memory, an exit code that is neither 0 nor 3, no message, leftovers
    2 unclean    an image on which e2fsck -fn finds something
    3 contents   an image whose readable files differ
    4 lenient    e2fsck calls the source broken, we resized it, the result is clean and equal (harmless; listed by kind)
    5 strict     e2fsck finds nothing in the source, but we refuse it
    6 source     the input file was changed
Exit code 1 if 1, 2, 3 or 6 happened.  The same seed on the same bases gives the same mutations.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time


import judge_matrix
import make_matrix
from lib import matrix_cases
from lib.ext4fs import (EA_INODE_FL, EXTENTS_FL, GD, HAS_JOURNAL, MMP, ORPHAN_FILE, ORPHAN_PRESENT, QUOTA, RECOVER, RESIZE_INODE, SB, Fs, Oddity, crc)
from lib.matrix_cases import E142, E143, E143_32, E147, EXT2, EXT3
from lib.tools import require_tools

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..")

SECONDS, MEMORY = int(os.environ.get("MUTATE_SECONDS", "60")), 1 << 30
BAD = ("crash", "unclean", "contents", "source")

# --- base images ------------------------------------------------------------------

TINY = {"parts": ["links", "symlinks", "xattrs", "acls", "deep", "htree", "names", "nodes", "spread_dirs", "last_inodes", "last_blocks", "again"],
        "htree": 160, "htree_name": 90, "deep_extents": 350, "xattr_files": 9, "spread": 9, "max_inodes": 3000, "keep_last": 12,
        "end_bytes": 900 << 10, "again_bytes": 300 << 10, "big_holes": False}
OLD = dict(TINY, parts=["links", "symlinks", "xattrs", "acls", "indirect", "htree", "names", "nodes", "spread_dirs", "last_inodes", "last_blocks", "again"],
           extents=False)


def base(size, bs, features, *args, inode=256, kind="ext4", profile=TINY, group="1024", inodes="900"):
    mkfs = ["-t", kind, "-b", str(bs), "-I", str(inode), "-O", features, "-g", group, "-N", inodes, "-U", "01234567-89ab-4cde-8f01-23456789abcd"]
    return [("mkfs", size, mkfs + list(args)), ("fill", profile, "nodelalloc")]


BASES = {
    "csum": base(12, 1024, E143),
    "csum-32": base(12, 1024, E143_32, "-G", "4"),
    "csum-i128": base(12, 1024, E143.replace(",extra_isize", ""), inode=128),
    "seed-orphan": base(12, 1024, E147, "-E", "orphan_file_size=32k"),
    "seed-4k": base(16, 4096, E147, group="512", profile=dict(TINY, deep_extents=60)),
    "uninit": base(12, 1024, E142),
    "uninit-noflex": base(12, 1024, E142 + ",^flex_bg", inode=128),
    "no-csum": base(10, 1024, matrix_cases.EXT4),
    "ext3": base(12, 1024, EXT3, kind="ext3", inode=128, profile=OLD),
    "ext2": base(10, 1024, EXT2, kind="ext2", inode=128, profile=OLD),
    "csum-indirect": base(12, 1024, E143_32.replace(",extent,", ","), profile=OLD),
    "inline": base(10, 1024, E143 + ",inline_data", profile=dict(TINY, parts=["inline"] + TINY["parts"])),
    "ea-inode": base(10, 1024, E143 + ",ea_inode", profile=dict(TINY, parts=["big_xattrs"] + TINY["parts"])),
    "shared": base(8, 1024, E143.replace(",extra_isize", ""), inode=128, profile=dict(TINY, parts=["shared_xattr", "links", "symlinks", "acls", "last_blocks"], shared_files=60)),
    "no-journal": base(8, 1024, E143 + ",^has_journal,^resize_inode"),
    "quota": base(12, 1024, E143) + [("run", ["tune2fs", "-O", "project", "{img}"]), ("run", ["tune2fs", "-Q", "usrquota,grpquota,prjquota", "{img}"]),
                                     ("run?", ["e2fsck", "-fy", "{img}"])],
    "2k": base(12, 2048, E143, group="1024"),
    "fast-commit": base(14, 1024, E147 + ",fast_commit", "-J", "size=2,fast_commit_size=256"),
    "mmp": base(10, 1024, E143) + [("run", ["tune2fs", "-O", "mmp", "{img}"])],
    "bigalloc": base(16, 1024, E143 + ",bigalloc", "-C", "4096"),
    "bigalloc-old": base(14, 2048, E142 + ",bigalloc,^flex_bg", "-C", "4096", group="512"),
    "bigalloc-today": base(16, 1024, E147 + ",bigalloc,inline_data,ea_inode,^resize_inode", "-C", "8192", group="512", inodes="960",
                           profile=dict(TINY, parts=["inline", "big_xattrs"] + TINY["parts"])),
    "bigalloc-plain": base(16, 4096, "none,filetype,extent,64bit,bigalloc", "-C", "8192", group="256", profile=dict(TINY, deep_extents=60)),
    "shared-blocks": [("mkfs", 10, ["-t", "ext4", "-b", "1024", "-O", E143 + ",^has_journal,^resize_inode", "-g", "1024", "-N", "900", "-d", "{tree}",
                                    "-U", "01234567-89ab-4cde-8f01-23456789abcd"])] + matrix_cases.SHARE,
    "meta-bg": base(10, 1024, E147 + ",meta_bg,^resize_inode", group="512"),
    "backups-2": base(10, 1024, E143 + ",sparse_super2", "-E", "num_backup_sb=2"),
    "everything": base(12, 1024, E147 + ",inline_data,ea_inode,large_dir", profile=dict(TINY, parts=["inline", "big_xattrs"] + TINY["parts"])),
    "plain-4k": base(16, 4096, "none,filetype,extent,64bit,metadata_csum", group="512", inode=128, profile=dict(TINY, deep_extents=60)),
}


def make_bases(folder, names):
    os.makedirs(folder, exist_ok=True)
    missing = [n for n in names if not os.path.exists(os.path.join(folder, n + ".json"))]
    if not missing:
        return
    require_tools()
    for name in missing:
        matrix_cases.CASES[name] = {"name": name, "steps": BASES[name], "quick": False, "kernel": True, "keep": None, "extra": []}
        said = make_matrix.make(name, folder, True)
        print("base %-14s %s" % (name, said[1]), flush=True)
        if said[1] != "made":
            sys.exit(1)


# --- what can be damaged ------------------------------------------------------------

INODE_FIELDS = {"mode": (0, 2), "uid": (2, 2), "size_lo": (4, 4), "atime": (8, 4), "ctime": (12, 4), "mtime": (16, 4), "faddr": (112, 4), "dtime": (20, 4), "gid": (24, 2), "links": (26, 2), "blocks_lo": (28, 4),
                "flags": (32, 4), "version": (36, 4), "generation": (100, 4), "file_acl": (104, 4), "size_hi": (108, 4), "blocks_hi": (116, 2),
                "file_acl_hi": (118, 2), "extra_isize": (128, 2), "projid": (156, 4)}
JOURNAL_FIELDS = {"magic": 0, "blocktype": 4, "sequence0": 8, "blocksize": 12, "maxlen": 16, "first": 20, "sequence": 24, "start": 28, "errno": 32,
                  "compat": 36, "incompat": 40, "ro_compat": 44, "uuid": 48, "nr_users": 64, "checksum_type": 80, "num_fc_blks": 84, "head": 88}


def twist(rng, old, size, near=()):
    """Another value for a field: extremes, neighbours, flipped bits, values that mean something nearby."""
    top = (1 << 8 * size) - 1
    while True:
        pick = rng.randrange(10)
        new = (0 if pick == 0 else top if pick == 1 else old + rng.choice((-1, 1, -2, 2, 4, 8)) if pick in (2, 3) else old ^ 1 << rng.randrange(8 * size) if pick in (4, 5) else
               rng.randrange(1 << rng.randrange(1, 8 * size + 1)) if pick == 6 else old * 2 if pick == 7 else
               rng.choice(list(near) or [1]) if pick in (8, 9) else 0) & top
        if new != old:
            return new


class Mutator:
    """Each `m_` method damages one thing and returns a text that says what."""

    def __init__(self, fs, rng):
        self.fs, self.rng, self.buf = fs, rng, fs.buf
        self._live = None

    def put(self, at, size, near=(), big=False):
        order = "big" if big else "little"
        old = int.from_bytes(self.buf[at:at + size], order)
        new = twist(self.rng, old, size, near)
        self.buf[at:at + size] = new.to_bytes(size, order)
        return "%x -> %x" % (old, new)

    def live(self, want=lambda inode: True):
        if self._live is None:
            self._live = [self.fs.inode(n) for n in self.fs.live_inodes() if n == 2 or n == 8 or n == 7 or n >= self.fs.first_ino]
        found = [i for i in self._live if want(i)]
        return self.rng.choice(found) if found else None

    def some_block(self):
        return self.rng.randrange(self.fs.first, self.fs.blocks + 2)

    def nears(self):
        """Values with a meaning: block and inode numbers, counts, limits."""
        fs = self.fs
        inode = self.live()
        return [fs.blocks, fs.blocks - 1, fs.inodes, fs.inodes + 1, fs.first, fs.bs, self.some_block(), inode.number, fs.gd(self.rng.randrange(fs.groups), "inode_table"),
                fs.gd(self.rng.randrange(fs.groups), "block_bitmap"), fs.group_start(self.rng.randrange(fs.groups)), 2, 7, 8, 11, 0x8000, 32769]

    def m_super(self):
        name = self.rng.choice([n for n in SB if n not in ("magic", "checksum")])
        offset, code = SB[name]
        did = self.put(1024 + offset, struct.calcsize(code), self.nears())
        self.fs.mend_super()
        return "superblock %s %s" % (name, did)

    def m_super_byte(self):
        at = self.rng.randrange(0x58, 0x300)
        did = self.put(1024 + at, 1)
        self.fs.mend_super()
        return "superblock byte %x %s" % (at, did)

    def m_backup(self):
        groups = [g for g in range(1, self.fs.groups) if self.fs.has_backup(g)]
        if not groups:
            return None
        g = self.rng.choice(groups)
        at = self.fs.group_start(g) * self.fs.bs + self.rng.randrange(2 * self.fs.bs)
        return "backup in group %d, byte %x: %s" % (g, at, self.put(at, 1))

    def m_desc(self):
        g, name = self.rng.randrange(self.fs.groups), self.rng.choice([n for n in GD if n != "checksum"])
        low, size, _, _ = GD[name]
        did = self.put(self.fs.desc_offset(g) + low, size, self.nears())
        if self.rng.random() < 0.95:
            self.fs.mend_desc(g)
        return "descriptor %d %s %s" % (g, name, did)

    def m_bitmap(self):
        g, which = self.rng.randrange(self.fs.groups), self.rng.choice(("block", "inode"))
        size = self.fs.bpg if which == "block" else self.fs.ipg
        bit = self.rng.randrange(size) if self.rng.random() < 0.9 else self.rng.randrange(self.fs.bs * 8)
        at = self.fs.gd(g, which + "_bitmap") * self.fs.bs + bit // 8
        self.buf[at] ^= 1 << bit % 8
        did = "%s bitmap %d bit %d -> %d" % (which, g, bit, self.buf[at] >> bit % 8 & 1)
        if self.rng.random() < 0.5:
            step = -1 if self.buf[at] >> bit % 8 & 1 else 1
            field, total = ("free_blocks", "free_blocks_count_lo") if which == "block" else ("free_inodes", "free_inodes_count")
            self.fs.set_gd(g, field, max(0, self.fs.gd(g, field) + step))
            self.fs.set_sb(total, max(0, self.fs.sb(total) + step))
            self.fs.mend_super()
            did += " with counts"
        self.fs.mend_bitmap(g, which)
        return did

    def m_inode(self):
        inode = self.live((lambda i: i.number in (2, 7, 8, 11)) if self.rng.random() < 0.15 else (lambda i: True))
        name = self.rng.choice(list(INODE_FIELDS))
        offset, size = INODE_FIELDS[name]
        if offset >= self.fs.inode_size:
            return None
        did = self.put(inode.at + offset, size, self.nears())
        self.fs.mend_tree(inode.number)
        return "inode %d (%o) %s %s" % (inode.number, inode.mode, name, did)

    def m_inode_flags(self):
        inode = self.live()
        bit = self.rng.choice((11, 12, 14, 18, 19, 20, 21, 22, 28, 29, 31))
        struct.pack_into("<I", self.buf, inode.at + 32, inode.flags ^ 1 << bit)
        self.fs.mend_tree(inode.number)
        return "inode %d (%o) flag bit %d" % (inode.number, inode.mode, bit)

    def m_unused_inode(self):
        """Garbage where no inode is."""
        live = {i.number for i in (self.live(), ) if i} | set(self.fs.live_inodes())
        number = self.rng.randrange(self.fs.first_ino, self.fs.inodes + 1)
        if number in live:
            return None
        at = self.fs.inode_offset(number) + self.rng.randrange(100)
        did = self.put(at, 1)
        self.fs.mend_inode(number)
        return "unused inode %d: %s" % (number, did)

    def m_root_extent(self):
        inode = self.live(lambda i: i.flags & EXTENTS_FL)
        if not inode:
            return None
        did = self.extent_field(inode.at + 40, 60)
        self.fs.mend_tree(inode.number)
        return "inode %d root extents: %s" % (inode.number, did)

    def extent_field(self, at, room):
        entries = struct.unpack_from("<H", self.buf, at + 2)[0]
        if self.rng.random() < 0.3 or not entries:
            name, offset = self.rng.choice((("magic", 0), ("entries", 2), ("max", 4), ("depth", 6)))
            return name + " " + self.put(at + offset, 2, (1, 3, 4, 5, entries + 1))
        slot = at + 12 + 12 * self.rng.randrange(min(entries, (room - 12) // 12))
        if self.rng.random() < 0.25 and entries > 1:
            other = at + 12 + 12 * self.rng.randrange(min(entries, (room - 12) // 12))
            a, b = bytes(self.buf[slot:slot + 12]), bytes(self.buf[other:other + 12])
            self.buf[slot:slot + 12], self.buf[other:other + 12] = b, a
            return "two entries swapped"
        name, offset, size = self.rng.choice((("logical", 0, 4), ("length", 4, 2), ("start_hi", 6, 2), ("start", 8, 4)))
        return name + " " + self.put(slot + offset, size, self.nears())

    def tree_node(self, kind):
        inode = self.live(lambda i: bool(i.flags & EXTENTS_FL) == (kind == "extent") and i.maps_blocks and (i.blocks > 4))
        for _ in range(40):
            if inode is None:
                return None, None
            try:
                nodes = [b for b, k in self.fs.map(inode)[1] if k == kind]
            except (Oddity, struct.error):
                nodes = []
            if nodes:
                return inode, self.rng.choice(nodes)
            inode = self.live(lambda i: bool(i.flags & EXTENTS_FL) == (kind == "extent") and i.maps_blocks and (i.blocks > 4))
        return None, None

    def m_extent_node(self):
        inode, block = self.tree_node("extent")
        if not inode:
            return None
        did = self.extent_field(block * self.fs.bs, self.fs.bs)
        self.fs.mend_extent_block(inode, block)
        return "inode %d extent node %d: %s" % (inode.number, block, did)

    def m_indirect(self):
        inode, block = self.tree_node("indirect")
        if not inode:
            return None
        slots = [k for k in range(self.fs.bs // 4) if any(self.buf[block * self.fs.bs + 4 * k:block * self.fs.bs + 4 * k + 4])]
        k = self.rng.choice(slots) if slots and self.rng.random() < 0.8 else self.rng.randrange(self.fs.bs // 4)
        return "inode %d indirect block %d slot %d: %s" % (inode.number, block, k, self.put(block * self.fs.bs + 4 * k, 4, self.nears() + [block]))

    def m_i_block(self):
        inode = self.live(lambda i: not i.flags & EXTENTS_FL)
        if not inode:
            return None
        k = self.rng.randrange(15)
        did = self.put(inode.at + 40 + 4 * k, 4, self.nears())
        self.fs.mend_tree(inode.number)
        return "inode %d (%o) i_block[%d] %s" % (inode.number, inode.mode, k, did)

    def dir_block(self, want=lambda kind: True):
        for _ in range(60):
            inode = self.live(lambda i: i.type == 0x4000 and not i.inline)
            blocks = [p + k for _, p, n, _ in self.fs.map(inode)[0] for k in range(n)]
            if not blocks:
                continue
            block = self.rng.choice(blocks)
            kind, at = self.fs.dir_block_kind(self.fs.block(block))
            if want(kind):
                return inode, block, kind, at
        return None, None, None, None

    def m_dir_entry(self):
        inode, block, _, _ = self.dir_block(lambda kind: kind != "node")
        if not inode:
            return None
        starts, at, raw = [], 0, self.fs.block(block)
        while at + 8 <= self.fs.bs:
            starts.append(at)
            length = struct.unpack_from("<H", raw, at + 4)[0]
            if length < 8:
                break
            at += length
        at = self.rng.choice(starts)
        name, offset, size = self.rng.choice((("inode", 0, 4), ("inode", 0, 4), ("rec_len", 4, 2), ("name_len", 6, 1), ("file_type", 7, 1), ("name byte", 8, 1), ("name byte", 9, 1)))
        if name == "name byte" and self.rng.random() < 0.5:
            self.buf[block * self.fs.bs + at + offset] = self.rng.choice(b"/\0./")
            did = "special"
        else:
            did = self.put(block * self.fs.bs + at + offset, size, self.nears() + [i.number for i in (self.live(lambda i: i.type == 0x4000),)])
        self.fs.mend_dir_block(inode, block)
        return "directory %d block %d entry at %d: %s %s" % (inode.number, block, at, name, did)

    def m_dup_name(self):
        inode, block, _, _ = self.dir_block(lambda kind: kind == "leaf")
        if not inode:
            return None
        raw, at, seen = self.fs.block(block), 0, []
        while at + 8 <= self.fs.bs:
            number, length, name_len, _ = struct.unpack_from("<IHBB", raw, at)
            if length < 8:
                break
            if number and name_len:
                seen.append((at, name_len))
            at += length
        same = [(a, b) for a in seen for b in seen if a < b and a[1] == b[1]]
        if not same:
            return None
        a, b = self.rng.choice(same)
        start = block * self.fs.bs
        self.buf[start + b[0] + 8:start + b[0] + 8 + b[1]] = raw[a[0] + 8:a[0] + 8 + a[1]]
        self.fs.mend_dir_block(inode, block)
        return "directory %d: a name twice" % inode.number

    def m_htree(self):
        inode, block, kind, limit_at = self.dir_block(lambda kind: kind != "leaf")
        if not inode:
            return None
        start = block * self.fs.bs
        count = struct.unpack_from("<H", self.buf, start + limit_at + 2)[0]
        pick = self.rng.randrange(5)
        if pick == 0 and kind == "root":
            name, at, size = self.rng.choice((("hash_version", 28, 1), ("info_length", 29, 1), ("levels", 30, 1), ("unused_flags", 31, 1), ("reserved", 24, 4)))
        elif pick <= 1:
            name, at, size = self.rng.choice((("limit", limit_at, 2), ("count", limit_at + 2, 2)))
        else:
            slot = self.rng.randrange(max(1, min(count, 100)))
            name, at, size = self.rng.choice((("hash", limit_at + 8 * slot, 4), ("block", limit_at + 8 * slot + 4, 4)))
            if slot == 0:
                name, at, size = "block", limit_at + 4, 4
        did = self.put(start + at, size, (0, 1, 2, 3, count, count + 1))
        self.fs.mend_dir_block(inode, block)
        return "directory %d htree %s block %d %s %s" % (inode.number, kind, block, name, did)

    def m_xattr_block(self):
        inode = self.live(lambda i: i.file_acl)
        if not inode:
            return None
        start = inode.file_acl * self.fs.bs
        if self.rng.random() < 0.4:
            name, offset, size = self.rng.choice((("magic", 0, 4), ("refcount", 4, 4), ("blocks", 8, 4), ("hash", 12, 4)))
            did = "%s %s" % (name, self.put(start + offset, size, (1, 2, 1024, 1025)))
        else:
            did = self.xattr_entry(start + 32, start + self.fs.bs)
        self.fs.mend_xattr_block(inode.file_acl)
        return "xattr block of inode %d: %s" % (inode.number, did)

    def m_xattr_inode(self):
        inode = self.live(lambda i: self.fs.inode_size > 128 and i.extra >= 4 and i.raw[128 + i.extra:132 + i.extra] == b"\0\0\x02\xea")
        if not inode:
            return None
        did = self.xattr_entry(inode.at + 132 + inode.extra, inode.at + self.fs.inode_size)
        self.fs.mend_inode(inode.number)
        return "xattrs in inode %d: %s" % (inode.number, did)

    def xattr_entry(self, at, end):
        starts = []
        while at + 16 <= end and self.buf[at:at + 4] != b"\0\0\0\0":
            starts.append(at)
            at += 16 + (self.buf[at] + 3) // 4 * 4
        if not starts:
            return "none " + self.put(at, 1)
        name, offset, size = self.rng.choice((("name_len", 0, 1), ("index", 1, 1), ("value_offs", 2, 2), ("value_inum", 4, 4), ("size", 8, 4), ("hash", 12, 4), ("name", 16, 1)))
        return "%s %s" % (name, self.put(self.rng.choice(starts) + offset, size, self.nears()))

    def m_resize(self):
        if not self.fs.compat & RESIZE_INODE or not self.fs.sb("reserved_gdt_blocks"):
            return None
        double = struct.unpack_from("<I", self.fs.inode(7).i_block, 52)[0]
        block = double if self.rng.random() < 0.5 else self.fs.super_block + 1 + self.fs.desc_blocks + self.rng.randrange(self.fs.sb("reserved_gdt_blocks"))
        k = self.rng.randrange(16) if self.rng.random() < 0.7 else self.rng.randrange(self.fs.bs // 4)
        return "resize inode: block %d slot %d %s" % (block, k, self.put(block * self.fs.bs + 4 * k, 4, self.nears()))

    def m_journal(self):
        if not self.fs.compat & HAS_JOURNAL:
            return None
        block = self.fs.map(self.fs.inode(8))[0][0][1]
        name = self.rng.choice(list(JOURNAL_FIELDS))
        did = self.put(block * self.fs.bs + JOURNAL_FIELDS[name], 4, (0, 1, 2, 3, 4, 0x12, 0x10, 0x20, 1024, 1023), big=True)
        self.fs.mend_journal_super(block)
        if self.rng.random() < 0.4:
            self.fs.set_sb("feature_incompat", self.fs.incompat | RECOVER)
            self.fs.mend_super()
            did += ", needs_recovery"
        return "journal %s %s" % (name, did)

    def m_journal_body(self):
        """A log that begins somewhere in whatever the journal holds."""
        if not self.fs.compat & HAS_JOURNAL:
            return None
        block = self.fs.map(self.fs.inode(8))[0][0][1]
        start = self.rng.randrange(1, 400)
        at = (block + start) * self.fs.bs
        sequence = struct.unpack_from(">I", self.buf, at + 8)[0] if self.buf[at:at + 4] == b"\xc0\x3b\x39\x98" else 1
        struct.pack_into(">II", self.buf, block * self.fs.bs + 24, sequence, start)
        did = self.put(at + self.rng.choice((4, 8, 12, 16, 20, 24, 28)), 4, self.nears(), big=True) if self.rng.random() < 0.5 else ""
        self.fs.mend_journal_super(block)
        self.fs.set_sb("feature_incompat", self.fs.incompat | RECOVER)
        self.fs.mend_super()
        return "journal starts at %d, sequence %d %s" % (start, sequence, did)

    def m_orphan(self):
        inode = self.live(lambda i: i.number >= self.fs.first_ino)
        if self.fs.compat & ORPHAN_FILE and self.rng.random() < 0.6:
            holder = self.fs.inode(self.fs.sb("orphan_file_inum"))
            block = self.fs.map(holder)[0][0][1]
            at = block * self.fs.bs + 4 * self.rng.randrange(8)
            struct.pack_into("<I", self.buf, at, inode.number if self.rng.random() < 0.7 else twist(self.rng, 0, 4, self.nears()))
            self.fs.mend_orphan_block(holder, block)
            if self.rng.random() < 0.8:
                self.fs.set_sb("feature_ro_compat", self.fs.ro | ORPHAN_PRESENT)
                self.fs.mend_super()
            return "orphan file: inode %d" % struct.unpack_from("<I", self.buf, at)[0]
        other = self.live(lambda i: i.number >= self.fs.first_ino)
        self.fs.set_sb("last_orphan", inode.number if self.rng.random() < 0.8 else twist(self.rng, 0, 4, self.nears()))
        struct.pack_into("<I", self.buf, inode.at + 20, self.rng.choice((0, other.number, inode.number, twist(self.rng, 0, 4))))
        if self.rng.random() < 0.4:
            struct.pack_into("<H", self.buf, inode.at + 26, 0)
        self.fs.mend_inode(inode.number)
        self.fs.mend_super()
        return "orphan list: inode %d (%o), then %d" % (inode.number, inode.mode, struct.unpack_from("<I", self.buf, inode.at + 20)[0])

    def m_quota(self):
        numbers = [self.fs.sb(n) for n in ("usr_quota_inum", "grp_quota_inum", "prj_quota_inum")] if self.fs.ro & QUOTA else []
        numbers = [n for n in numbers if n]
        if not numbers:
            return None
        inode = self.fs.inode(self.rng.choice(numbers))
        _, block, length, _ = self.rng.choice(self.fs.map(inode)[0])
        at = (block + self.rng.randrange(length)) * self.fs.bs + self.rng.randrange(self.fs.bs // 4) * 4
        return "quota inode %d: %s" % (inode.number, self.put(at, 4, self.nears()))

    def m_share(self):
        """One block in two files."""
        a, b = (self.live(lambda i: i.flags & EXTENTS_FL and i.maps_blocks and i.blocks and i.i_block[6:8] == b"\0\0" and i.i_block[2:4] != b"\0\0") for _ in range(2))
        if not a or not b or a.number == b.number:
            return None
        self.buf[b.at + 40 + 18:b.at + 40 + 24] = a.i_block[18:24]
        self.fs.mend_tree(b.number)
        return "inode %d gets a block of inode %d" % (b.number, a.number)

    def m_feature(self):
        """Features that contradict what is there, and some that nobody knows."""
        word, known = self.rng.choice((("compat", (2, 3, 4, 5, 9, 10, 11, 12)), ("incompat", (1, 2, 4, 6, 7, 8, 9, 10, 13, 14, 15, 16, 17)),
                                       ("ro_compat", (0, 1, 3, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 16))))
        bit = self.rng.choice(known) if self.rng.random() < 0.9 else self.rng.randrange(32)
        self.fs.set_sb("feature_" + word, self.fs.sb("feature_" + word) ^ 1 << bit)
        mended = ""
        try:
            self.fs.reload()
            self.fs.mend_super()
            if self.rng.random() < 0.5:
                # As a tool would leave it: the descriptors carry what the new features ask for.
                for g in range(self.fs.groups):
                    self.fs.mend_desc(g)
                mended = ", descriptors mended"
        except Oddity:
            pass
        return "feature %s bit %d%s" % (word, bit, mended)

    def m_reserved(self):
        """The inodes below s_first_ino that are not the root, the journal or the resize inode."""
        number = self.rng.choice((1, 1, 3, 4, 5, 6, 9, 10))
        at = self.fs.inode_offset(number)
        name = self.rng.choice(list(INODE_FIELDS) + ["i_block"] * 6)
        offset, size = INODE_FIELDS.get(name, (40 + 4 * self.rng.randrange(15), 4))
        if offset >= self.fs.inode_size:
            return None
        did = self.put(at + offset, size, self.nears())
        self.fs.mend_inode(number)
        return "reserved inode %d %s %s" % (number, name, did)

    def m_clone_inode(self):
        """An inode in the slot of another one."""
        a, b = self.live(), self.live()
        if a.number == b.number or min(a.number, b.number) < self.fs.first_ino:
            return None
        self.buf[b.at:b.at + self.fs.inode_size] = a.raw
        if self.rng.random() < 0.3:
            self.buf[a.at:a.at + self.fs.inode_size] = b.raw
            self.fs.mend_tree(a.number)
        self.fs.mend_tree(b.number)
        return "inode %d is as inode %d" % (b.number, a.number)

    def m_share_xattr(self):
        """Another inode has a share of an xattr block, counted or not."""
        a, b = self.live(lambda i: i.file_acl), self.live(lambda i: i.number >= self.fs.first_ino)
        if not a or a.number == b.number:
            return None
        old = b.file_acl
        struct.pack_into("<I", self.buf, b.at + 104, a.file_acl)
        did = ""
        if self.rng.random() < 0.6:
            if not old and self.rng.random() < 0.7:
                struct.pack_into("<I", self.buf, b.at + 28, b.blocks_lo + self.fs.bs // 512)
                did += ", with its blocks"
            at = a.file_acl * self.fs.bs + 4
            struct.pack_into("<I", self.buf, at, struct.unpack_from("<I", self.buf, at)[0] + 1)
            self.fs.mend_xattr_block(a.file_acl)
            did += ", counted"
        self.fs.mend_inode(b.number)
        return "inode %d shares the xattrs of inode %d%s" % (b.number, a.number, did)

    def m_ea_inode(self):
        inode = self.live(lambda i: i.flags & EA_INODE_FL)
        if not inode:
            return None
        if self.rng.random() < 0.3:
            _, block, length, _ = self.rng.choice(self.fs.map(inode)[0])
            return "value in inode %d: %s" % (inode.number, self.put((block + self.rng.randrange(length)) * self.fs.bs + self.rng.randrange(self.fs.bs), 1))
        name, offset, size = self.rng.choice((("hash", 8, 4), ("refcount hi", 12, 4), ("owner", 16, 4), ("refcount", 36, 4), ("links", 26, 2), ("size", 4, 4), ("flags", 32, 4), ("mode", 0, 2)))
        did = self.put(inode.at + offset, size, self.nears())
        self.fs.mend_tree(inode.number)
        return "ea_inode %d %s %s" % (inode.number, name, did)

    def m_symlink(self):
        inode = self.live(lambda i: i.type == 0xA000)
        if not inode:
            return None
        if self.rng.random() < 0.3:
            did = "size " + self.put(inode.at + 4, 4, (0, 59, 60, 61, self.fs.bs - 1, self.fs.bs, inode.size + 1))
        elif inode.maps_blocks:
            _, block, _, _ = self.fs.map(inode)[0][0]
            did = "target " + self.put(block * self.fs.bs + self.rng.randrange(int(inode.size) + 2), 1, (0, 47))
        else:
            did = "target " + self.put(inode.at + 40 + self.rng.randrange(60), 1, (0, 47))
        self.fs.mend_inode(inode.number)
        return "symlink %d %s" % (inode.number, did)

    def m_leaf_tail(self):
        inode, block, _, _ = self.dir_block(lambda kind: kind == "leaf")
        if not inode:
            return None
        at = (block + 1) * self.fs.bs - 12
        name, offset, size = self.rng.choice((("inode", 0, 4), ("rec_len", 4, 2), ("name_len", 6, 1), ("file_type", 7, 1), ("checksum", 8, 4)))
        return "directory %d tail of block %d: %s %s" % (inode.number, block, name, self.put(at + offset, size, (12, 0xDE, 8, 16)))

    def m_whole_block(self):
        """A block of metadata becomes zeros, ones or another block, and gets its checksum."""
        pick = self.rng.randrange(5)
        inode, block = None, 0
        if pick == 0:
            inode, block, _, _ = self.dir_block()
            mend = self.fs.mend_dir_block
        elif pick == 1:
            inode, block = self.tree_node("extent")
            mend = self.fs.mend_extent_block
        elif pick == 2:
            inode = self.live(lambda i: i.file_acl)
            block = inode and inode.file_acl
            mend = lambda _, block: self.fs.mend_xattr_block(block)
        elif pick == 3:
            g, which = self.rng.randrange(self.fs.groups), self.rng.choice(("block", "inode"))
            inode, block = self.live(), self.fs.gd(g, which + "_bitmap")
            mend = lambda *_: self.fs.mend_bitmap(g, which)
        else:
            number = self.rng.choice([i for i in (self.live(), )]).number
            inode, block = self.live(), self.fs.inode_offset(number) // self.fs.bs
            mend = lambda *_: None
        if not inode:
            return None
        at, other = block * self.fs.bs, self.some_block()
        how = self.rng.choice(("zeros", "ones", "block %d" % other))
        self.buf[at:at + self.fs.bs] = bytes(self.fs.bs) if how == "zeros" else b"\xff" * self.fs.bs if how == "ones" else self.fs.block(other)
        mend(inode, block)
        return "block %d (kind %d) becomes %s" % (block, pick, how)

    def m_mmp(self):
        if not self.fs.incompat & MMP:
            return None
        at = self.fs.sb("mmp_block") * self.fs.bs
        name, offset, size = self.rng.choice((("magic", 0, 4), ("sequence", 4, 4), ("time", 8, 4), ("interval", 0x70, 2), ("checksum", 1020, 4)))
        did = self.put(at + offset, size, (0xFF4D4D50, 0xE24D4D50, 1, 5))
        if name != "checksum" and self.fs.csum:
            struct.pack_into("<I", self.buf, at + 1020, crc(self.fs.seed, self.buf[at:at + 1020]))
        return "mmp %s %s" % (name, did)

    def m_orphan_tail(self):
        if not self.fs.compat & ORPHAN_FILE:
            return None
        holder = self.fs.inode(self.fs.sb("orphan_file_inum"))
        block = self.fs.map(holder)[0][0][1]
        did = self.put((block + 1) * self.fs.bs - self.rng.choice((8, 4)), 4)
        return "orphan file's tail %s" % did

    # The log: what it holds and where, with the right checksums.

    def journal_place(self):
        """Returns (function from a block of the log to one of the filesystem, its length, its superblock's fields)."""
        runs = self.fs.map(self.fs.inode(8))[0]
        places = [p + k for _, p, n, _ in runs for k in range(n)]
        at = places[0] * self.fs.bs
        fields = {name: struct.unpack_from(">I", self.buf, at + offset)[0] for name, offset in JOURNAL_FIELDS.items()}
        return places, fields, bytes(self.buf[at + 48:at + 64])

    def start_log(self, places, start, sequence):
        struct.pack_into(">II", self.buf, places[0] * self.fs.bs + 24, sequence, start)
        self.fs.mend_journal_super(places[0])
        self.fs.set_sb("feature_incompat", self.fs.sb("feature_incompat") | RECOVER)
        self.fs.mend_super()

    def m_transaction(self):
        """The damage of another kind, in a committed transaction instead of in its place."""
        if not self.fs.compat & HAS_JOURNAL:
            return None
        places, fields, uuid = self.journal_place()
        before = bytes(self.buf)
        kind = self.rng.choice([k for k in KINDS if k not in ("transaction", "fast_commit", "journal", "journal_body", "any_byte", "swap_metadata")])
        said = getattr(self, "m_" + kind)()
        if not said:
            return None
        bs = self.fs.bs
        blocks = [(b, bytes(self.buf[b * bs:(b + 1) * bs])) for b in range(self.fs.blocks) if self.buf[b * bs:(b + 1) * bs] != before[b * bs:(b + 1) * bs]]
        self.buf[:] = before
        if not 0 < len(blocks) <= 40:
            return None
        said = "in the log: %s" % said
        wild = self.rng.randrange(12)
        if wild == 0:
            blocks.append((self.rng.choice((0, self.fs.blocks, self.fs.blocks - 1, places[0], places[3], self.some_block())), self.fs.block(self.some_block() % self.fs.blocks)))
            said += ", and block %d" % blocks[-1][0]
        elif wild == 1:
            blocks.append(blocks[0])
        at, sequence = fields["first"], fields["sequence"] or 1
        v3, v2, wide = fields["incompat"] & 0x10, fields["incompat"] & 8, fields["incompat"] & 2
        seed = crc(0xFFFFFFFF, uuid)

        def emit(raw):
            nonlocal at
            self.buf[places[at] * bs:(places[at] + 1) * bs] = raw
            at += 1

        def block(kind, sequence):
            return bytearray(struct.pack(">III", 0xC03B3998, kind, sequence).ljust(bs, b"\0"))

        def tail(raw):
            if v2 or v3:
                struct.pack_into(">I", raw, bs - 4, crc(seed, bytes(raw[:bs - 4]) + bytes(4)))
            return raw

        def commit(sequence):
            raw = block(2, sequence)
            struct.pack_into(">Q", raw, 48, 1700000000)
            if v2 or v3:
                struct.pack_into(">I", raw, 16, crc(seed, raw))
            return raw

        def revoke(numbers, sequence):
            raw = block(5, sequence)
            width = 8 if wide else 4
            struct.pack_into(">I", raw, 12, 16 + width * len(numbers))
            for k, number in enumerate(numbers):
                raw[16 + width * k:16 + width * (k + 1)] = number.to_bytes(width, "big")
            return raw

        if wild in (2, 3):
            emit(tail(revoke([self.some_block()] + [b for b, _ in blocks[:1 + (wild == 3)]], sequence)))
            said += ", revoked in the same transaction"
        descriptor, offset = block(1, sequence), 12
        copies = []
        for k, (number, raw) in enumerate(blocks):
            flags = (2 if k else 0) | (8 if k + 1 == len(blocks) else 0) | (1 if raw[:4] == b"\xc0\x3b\x39\x98" else 0)
            raw = bytes(4) + raw[4:] if flags & 1 else raw
            value = crc(crc(seed, struct.pack(">I", sequence)), raw)
            if v3:
                struct.pack_into(">IIII", descriptor, offset, number & 0xFFFFFFFF, flags, number >> 32, value)
                offset += 16
            else:
                struct.pack_into(">IHH", descriptor, offset, number & 0xFFFFFFFF, value & 0xFFFF if v2 else 0, flags)
                if wide:
                    struct.pack_into(">I", descriptor, offset + 8, number >> 32)
                offset += 8 + (4 if wide else 0) + (2 if v2 else 0)
            if not k:
                descriptor[offset:offset + 16] = uuid
                offset += 16
            copies.append(raw)
        if wild == 4:
            k = 12 + self.rng.randrange(max(1, offset - 12))
            descriptor[k] ^= 1 << self.rng.randrange(8)
            said += ", descriptor byte %d" % k
        emit(tail(descriptor))
        for raw in copies:
            emit(raw)
        emit(commit(sequence))
        if wild in (5, 6):
            raw = revoke([b for b, _ in blocks], sequence + 1)
            if wild == 6:
                struct.pack_into(">I", raw, 12, self.rng.choice((0, 12, 15, 17, bs, bs - 4, bs + 1, 0xFFFFFFFF)))
            emit(tail(raw))
            emit(commit(sequence + 1))
            said += ", revoked afterwards (%d)" % wild
        self.start_log(places, fields["first"], sequence)
        return said

    def m_fast_commit(self):
        """Tags behind an empty log, each about something that is there."""
        if not self.fs.compat & HAS_JOURNAL:
            return None
        places, fields, _ = self.journal_place()
        if not fields["incompat"] & 0x20 and self.rng.random() < 0.9:
            return None
        bs, tid = self.fs.bs, fields["sequence"] or 1
        area = fields["maxlen"] - (fields["num_fc_blks"] or 256) + 1
        if not 2 < area < len(places) - 8:
            return None
        dirs = [i for i in (self.live(lambda i: i.type == 0x4000 and not i.inline) for _ in range(6)) if i]

        def name_in(inode):
            found = [(n, name) for name, n, _ in self.fs.entries(inode) if name not in (b".", b"..")]
            return self.rng.choice(found) if found else None

        def tag(kind, value):
            return struct.pack("<HH", kind, len(value)) + value

        def some_inode():
            return (self.live(lambda i: i.number >= self.fs.first_ino) if self.rng.random() < 0.9 else self.live()).number if self.rng.random() < 0.93 else twist(self.rng, 0, 4, self.nears())

        def some_tag():
            pick, parent = self.rng.randrange(9), self.rng.choice(dirs)
            if pick <= 2:
                inode = self.live(lambda i: i.number >= self.fs.first_ino)
                raw = bytearray(inode.raw[:128 + max(inode.extra, 0)])
                for _ in range(self.rng.randrange(3)):
                    offset, size = self.rng.choice(list(INODE_FIELDS.values()))
                    if offset + size <= len(raw):
                        old = int.from_bytes(raw[offset:offset + size], "little")
                        raw[offset:offset + size] = twist(self.rng, old, size, self.nears()).to_bytes(size, "little")
                number = inode.number if self.rng.random() < 0.7 else self.rng.randrange(self.fs.first_ino, self.fs.inodes + 2)
                return "inode %d" % number, tag(6, struct.pack("<I", number) + bytes(raw))
            if pick == 3:
                number, length = some_inode(), self.rng.choice((1, 2, 32768, 32769, 9, 0))
                start = self.some_block() if self.rng.random() < 0.8 else twist(self.rng, 0, 4, self.nears())
                return "add %d" % number, tag(1, struct.pack("<IIHHI", number, self.rng.randrange(40), length, 0, start & 0xFFFFFFFF))
            if pick == 4:
                number = some_inode()
                return "del %d" % number, tag(2, struct.pack("<III", number, self.rng.randrange(20), self.rng.choice((1, 3, 100, 0xFFFFFFFF, 0))))
            found = name_in(parent)
            if pick in (5, 6) and found:
                return "unlink %r" % found[1][:12], tag(5, struct.pack("<II", parent.number, found[0]) + found[1])
            name = b"new-%d" % self.rng.randrange(5) if self.rng.random() < 0.9 else self.rng.choice((b".", b"..", b"a/b", b"x\0y", b"n" * 255)) if not found or self.rng.random() < 0.5 else found[1]
            kind = self.rng.choice((3, 4, 4))
            return "%s %r" % ("create" if kind == 3 else "link", name[:12]), tag(kind, struct.pack("<II", parent.number, some_inode()) + name)

        out, said = bytearray(tag(9, struct.pack("<II", 0 if self.rng.random() < 0.95 else 1, tid))), []
        if not dirs:
            return None
        blocks, commit_crc = [], 0

        def flush():
            """Ends a fast commit with its tail, which fills the block."""
            nonlocal out, commit_crc
            left = bs - len(out) - 4
            value = struct.pack("<HHI", 8, left, tid)
            commit_crc = crc(commit_crc, bytes(out) + value)
            blocks.append(bytes(out) + value + struct.pack("<I", commit_crc) + bytes(left - 8))
            out, commit_crc = bytearray(), 0

        for _ in range(self.rng.choice((1, 1, 2, 3))):
            for _ in range(self.rng.choice((1, 2, 3, 5, 8))):
                what, raw = some_tag()
                said.append(what)
                if len(out) + len(raw) + 12 > bs:
                    pad = struct.pack("<HH", 7, bs - len(out) - 4)
                    commit_crc = crc(commit_crc, bytes(out) + pad + bytes(bs - len(out) - 4))
                    blocks.append(bytes(out) + pad + bytes(bs - len(out) - 4))
                    out = bytearray()
                out += raw
            flush()
        for k, raw in enumerate(blocks[:len(places) - area]):
            self.buf[places[area + k] * bs:(places[area + k] + 1) * bs] = raw
        # The log itself is empty: its first block is none of transaction `tid`.
        self.buf[places[fields["first"]] * bs:(places[fields["first"]] + 1) * bs] = bytes(bs)
        self.start_log(places, fields["first"], tid)
        return "fast commits: %s" % ", ".join(said)

    def m_swap_metadata(self):
        g, h = self.rng.randrange(self.fs.groups), self.rng.randrange(self.fs.groups)
        name = self.rng.choice(("inode_table", "block_bitmap", "inode_bitmap"))
        if g == h:
            return None
        self.fs.set_gd(g, name, self.fs.gd(h, name) + self.rng.choice((0, 0, 1)))
        self.fs.mend_desc(g)
        return "group %d gets the %s of group %d" % (g, name, h)

    def m_any_byte(self):
        """A byte of any metadata block, checksum not mended: the control group."""
        at = self.rng.randrange(1024, self.fs.bs * min(self.fs.blocks, 400))
        return "byte %x: %s" % (at, self.put(at, 1))


KINDS = [name[2:] for name in dir(Mutator) if name.startswith("m_")]
WEIGHT = {"transaction": 4, "fast_commit": 3, "inode": 5, "desc": 3, "super": 3, "dir_entry": 4, "root_extent": 4, "extent_node": 3, "bitmap": 2, "xattr_block": 2, "htree": 3, "orphan": 2}


def mutate(buf, rng, kinds):
    """Damages `buf` in place; returns the list of what was done."""
    fs, did = Fs(buf), []
    for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 2, 3))):
        for _ in range(20):
            kind = rng.choices(kinds, [WEIGHT.get(k, 1) for k in kinds])[0]
            try:
                said = getattr(Mutator(fs, rng), "m_" + kind)()
            except (Oddity, struct.error, AttributeError, IndexError, StopIteration, OverflowError, ValueError):
                said = None  # an earlier mutation of this round is in the way
            if said:
                did.append((kind, said))
                break
        try:
            fs = Fs(buf)
        except (Oddity, struct.error, ZeroDivisionError):
            break
    return did


# --- judging ----------------------------------------------------------------------------

def capture(program, image, out, grow=False, seconds=SECONDS, options=("--headroom", "0")):
    """Returns (exit code or text, output, peak memory in bytes, seconds); to grow, `out` is enlarged and then expanded."""
    command = [program, "expand", out] if grow else [program, "capture", image, out, *options]
    if grow:
        # As on a card: behind the filesystem there is anything.
        shutil.copyfile(image, out)
        with open(out, "ab") as f:
            f.write(b"\xa5" * (os.path.getsize(image) * 2 // 3))
    def limits():
        resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY, 4 * MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    began = time.monotonic()
    with open(out + ".log", "w+b") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=limits)
        late = []
        timer = threading.Timer(seconds, lambda: (late.append(1), child.kill()))
        timer.start()
        _, status, usage = os.wait4(child.pid, 0)
        timer.cancel()
        child.returncode = 0  # reaped above
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    os.unlink(out + ".log")
    code = "hang" if late else os.waitstatus_to_exitcode(status)
    return code, said, usage.ru_maxrss * 1024, time.monotonic() - began


def e2fsck(image):
    """Returns (exit code, the complaints)."""
    try:
        done = subprocess.run(["e2fsck", "-fn", image], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    except subprocess.TimeoutExpired:
        return 99, ["e2fsck hangs"]
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    noise = ("Pass ", "e2fsck ", "***")
    return done.returncode, [l for l in lines if l.strip() and not l.startswith(noise) and image not in l.split(":")[0] and l.strip() not in ("Fix? no", "Clear? no")]


def read_tree(path):
    with open(path, "rb") as f:
        return Fs(f.read()).tree()


def expected_tree(image, scratch):
    """What can be read of the damaged source, and whether maps can be compared; None if nothing."""
    with open(image, "rb") as f:
        buf = f.read()
    try:
        fs = Fs(buf)
        maps = not fs.sb("last_orphan") and not fs.ro & ORPHAN_PRESENT
        if fs.incompat & RECOVER:
            if holds_fast_commits(fs):
                # There the kernel, e2fsck and we differ on purpose.
                return None, False
            shutil.copyfile(image, scratch)
            subprocess.run(["e2fsck", "-fy", "-E", "journal_only", scratch], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=120)
            return read_tree(scratch), maps
        return fs.tree(), maps
    except (Oddity, struct.error, ZeroDivisionError, RecursionError):
        return None, False
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)


def holds_fast_commits(fs):
    try:
        places, fields, _ = Mutator(fs, None).journal_place()
        area = fields["maxlen"] - (fields["num_fc_blks"] or 256) + 1
        return bool(fields["incompat"] & 0x20) and fs.block(places[area])[:4] == b"\x09\0\x08\0"
    except (Oddity, struct.error, IndexError):
        return False


def differences(was, now, maps, source_clean):
    if was is None:
        return []
    found = []
    strip = (lambda v: v) if maps else (lambda v: re.sub(r" map=\S+", "", v) if v else v)
    for path, fields in was.items():
        if "error=" in fields or fields.endswith(" twice"):
            continue
        a, b = strip(fields), strip(now.get(path))
        if a != b:
            found.append("%r: %s -> %s" % (path, a[:250], (b or "(none)")[:250]))
    if source_clean:
        found += ["%r appeared" % path for path in now if path not in was]
    return found


LEAD = 1 << 20


def wrap(image, disk):
    """Puts a filesystem into the first partition of a disk, a swap area behind it: that has to move."""
    size = -(-os.path.getsize(image) // 512)
    swap = LEAD // 512 + size + 8
    with open(disk, "wb") as f:
        entries = struct.pack("<B3xB3xII", 0, 0x83, LEAD // 512, size) + struct.pack("<B3xB3xII", 0, 0x82, swap, 128)
        f.write(b"\0" * 440 + b"\x01\x02\x03\x04\0\0" + entries + bytes(32) + b"\x55\xaa")
        f.seek(LEAD)
        with open(image, "rb") as source:
            shutil.copyfileobj(source, f)
        f.seek(swap * 512)
        f.write(bytes(1024) + struct.pack("<III", 1, 15, 0) + bytes(16) + b"behind".ljust(16, b"\0"))
        f.seek(swap * 512 + 4086)
        f.write(b"SWAPSPACE2")
        f.truncate((swap + 128) * 512)


def unwrap(disk, out):
    """Puts the first partition of a disk into a file of its own; returns what is wrong with the rest."""
    with open(disk, "rb") as f:
        raw = f.read()
    (_, kind, start, size), (_, second, swap, length) = (struct.unpack_from("<B3xB3xII", raw, 446 + 16 * k) for k in (0, 1))
    with open(out, "wb") as f:
        f.write(raw[start * 512:(start + size) * 512])
    there = raw[swap * 512:]
    fine = (kind, start, second, length) == (0x83, LEAD // 512, 0x82, 128) and swap >= start + size and there[4086:4096] == b"SWAPSPACE2" and there[1052:1058] == b"behind"
    return None if fine and (swap + length) * 512 == len(raw) else "the table: %d %d %d, %d %d %d of %d bytes" % (kind, start, size, second, swap, length, len(raw))


def judge(program, image, scratch, grow=False, options=("--headroom", "0"), disk=False):
    """Returns (class or None, text, extra facts) for one damaged image."""
    out = scratch + ".out.img"
    with open(image, "rb") as f:
        before = f.read()
    if disk:
        wrap(image, scratch + ".disk")
        with open(scratch + ".disk", "rb") as f:
            whole = f.read()
        code, said, memory, seconds = capture(program, scratch + ".disk", scratch + ".made", False, options=options)
        with open(scratch + ".disk", "rb") as f:
            if f.read() != whole:
                return "source", "the input was changed", seconds
        os.unlink(scratch + ".disk")
        if os.path.exists(scratch + ".made"):
            wrong = unwrap(scratch + ".made", out)
            for path in (scratch + ".made", scratch + ".made.bmap"):
                if os.path.exists(path):
                    os.unlink(path)
            if wrong and code == 0:
                return "contents", wrong, seconds
    else:
        code, said, memory, seconds = capture(program, image, out, grow, options=options)
    leftovers = [n for n in os.listdir(os.path.dirname(scratch)) if n.startswith(os.path.basename(out)) and n not in (os.path.basename(out), os.path.basename(out) + ".bmap")]
    try:
        with open(image, "rb") as f:
            if f.read() != before:
                return "source", "the input was changed", seconds
        if grow and (code == 3 or code == 1 and "does not fit" in said) and "panicked" not in said:
            with open(out, "rb") as f:
                if f.read(len(before)) != before:
                    return "source", "refused, but changed", seconds
            os.unlink(out)
            # That there is no room to grow is no other answer.
            code = 3
        if grow and code == 0 and os.path.exists(out):
            with open(out, "rb") as f:
                if f.read(len(before)) == before:
                    # Features of which the program says that it cannot resize with them.
                    return None, "left as it is", seconds
        if code not in (0, 3) or "panicked" in said:
            return "crash", "exit %s: %s" % (code, said.strip()[-500:]), seconds
        if memory > MEMORY:
            return "crash", "%d MiB of memory" % (memory >> 20), seconds
        if leftovers:
            return "crash", "left behind: %s" % leftovers, seconds
        lines = [l for l in said.splitlines() if l.startswith("pishrink: ")]
        if code == 3:
            if os.path.exists(out):
                return "crash", "refused, but there is an image", seconds
            if not lines:
                return "crash", "refused without a word", seconds
            verdict, complaints = e2fsck(image)
            if verdict == 0 and not complaints_matter(complaints) and not grow:
                return "strict", "we: %s" % lines[0], seconds
            return None, "refused: " + lines[0], seconds
        if "copied whole" in said:
            # Not understood (another revision, unknown features of the journal): then every byte is kept.
            with open(out, "rb") as f:
                same = f.read(len(before)) == before
            return (None if same else "contents"), "copied whole", seconds
        verdict, complaints = e2fsck(out)
        if "keeps its size because" in said and any("newer version of e2fsck" in line for line in complaints):
            return None, "features unknown to e2fsck", seconds
        if verdict != 0:
            return "unclean", "; ".join(complaints[:4]), seconds
        source_verdict, source_said = e2fsck(image)
        was, maps = expected_tree(image, scratch + ".replayed")
        try:
            now = read_tree(out)
        except (Oddity, struct.error) as odd:
            return "contents", "the result cannot be read: %s" % odd, seconds
        found = differences(was, now, maps, source_verdict == 0)
        if found:
            return "contents", "%d differ (e2fsck on the source: %d %s): %s" % (len(found), source_verdict, source_said[:1], "; ".join(found[:2])), seconds
        if source_verdict != 0:
            return "lenient", "e2fsck: %s" % " / ".join(source_said[:2]), seconds
        return None, "resized", seconds
    finally:
        for path in (out, out + ".bmap"):
            if os.path.exists(path):
                os.unlink(path)


def complaints_matter(lines):
    return any("WARNING" in l for l in lines)


def worker(task):
    args, number = task
    rng = random.Random("%s/%d" % (args["seed"], number))
    name = rng.choice(args["bases"])
    with open(os.path.join(args["work"], "bases", name + ".img"), "rb") as f:
        buf = bytearray(f.read())
    did = mutate(buf, rng, args["kinds"]) if number >= 0 else []
    folder = os.path.join(args["fast"], "w%d" % os.getpid())
    os.makedirs(folder, exist_ok=True)
    image = os.path.join(folder, "in.img")
    with open(image, "wb") as f:
        f.write(buf)
    try:
        verdict, text, seconds = judge(args["program"], image, os.path.join(folder, "s"), args["grow"], args["options"], args["disk"])
    except Exception as error:  # judged by hand then
        verdict, text, seconds = "crash", "the judge: %s: %s" % (type(error).__name__, error), 0
    label = "%s-%s-%d" % (verdict, args["seed"], number)
    if verdict and (verdict in BAD or args["save_all"]):
        found = os.path.join(args["work"], "found")
        os.makedirs(found, exist_ok=True)
        subprocess.run(["zstd", "-q", "-f", "-6", image, "-o", os.path.join(found, label + ".img.zst")])
        with open(os.path.join(found, label + ".txt"), "w") as f:
            json.dump({"base": name, "mutations": did, "verdict": verdict, "text": text}, f, indent=1)
    return number, name, did, verdict, text, seconds


def general(text):
    """Numbers do not make a finding another one."""
    return re.sub(r"\d+|0x[0-9a-f]+", "N", text)[:110]


def replay(files, program, fast, grow, options, disk):
    bad = 0
    for path in files:
        os.makedirs(fast, exist_ok=True)
        image = os.path.join(fast, "replay.img")
        if path.endswith(".zst"):
            subprocess.run(["zstd", "-q", "-d", "-f", path, "-o", image], check=True)
        else:
            shutil.copyfile(path, image)
        verdict, text, seconds = judge(program, image, os.path.join(fast, "s"), grow, options, disk)
        print("%-9s %s: %s" % (verdict or "ok", os.path.basename(path), text[:300]), flush=True)
        bad += verdict in BAD
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--minutes", type=float, help="run that long instead of --count")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kinds", help="only these: " + " ".join(KINDS))
    parser.add_argument("--bases", help="only these: " + " ".join(BASES))
    parser.add_argument("--work", default="/tmp/pishrink-mutate")
    parser.add_argument("--grow", action="store_true", help="judge `expand` in place instead of `capture`")
    parser.add_argument("--options", default="--headroom 0", help="what `capture` is told (one word, quoted)")
    parser.add_argument("--disk", action="store_true", help="the filesystem lies in a partition, with a swap area behind it that moves")
    parser.add_argument("--save-all", action="store_true", help="save lenient and strict ones too")
    parser.add_argument("--replay", nargs="+", metavar="FILE")
    args = parser.parse_args()
    program = judge_matrix.find_program()
    fast = os.path.join("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp", "mutate-%d" % os.getpid())
    try:
        if args.replay:
            return replay(args.replay, program, fast, args.grow, args.options.split(), args.disk)
        return campaign(args, program, fast)
    finally:
        shutil.rmtree(fast, ignore_errors=True)


def campaign(args, program, fast):
    bases = args.bases.split(",") if args.bases else list(BASES)
    kinds = args.kinds.split(",") if args.kinds else KINDS
    make_bases(os.path.join(args.work, "bases"), bases)
    options = {"seed": args.seed, "bases": bases, "kinds": kinds, "work": args.work, "program": program, "fast": fast, "save_all": args.save_all, "grow": args.grow,
               "options": args.options.split(), "disk": args.disk}
    for number, name in enumerate(bases):
        _, _, _, verdict, text, _ = worker((dict(options, bases=[name], seed="sound"), -1 - number))
        if verdict or text != "resized":
            print("base %s is not even captured undamaged: %s %s" % (name, verdict, text))
    began = time.monotonic()

    def numbers():
        number = args.first
        while (time.monotonic() - began < args.minutes * 60) if args.minutes else number < args.first + args.count:
            yield options, number
            number += 1

    totals, groups, slowest = collections.Counter(), collections.defaultdict(list), 0
    with multiprocessing.Pool(args.jobs) as pool:
        # A bounded feed, so that --minutes means minutes.
        feed, pending = numbers(), collections.deque()
        while True:
            while len(pending) < 4 * args.jobs:
                task = next(feed, None)
                if task is None:
                    break
                pending.append(pool.apply_async(worker, (task,)))
            if not pending:
                break
            number, name, did, verdict, text, seconds = pending.popleft().get()
            slowest = max(slowest, seconds)
            totals[verdict or text.split(":")[0]] += 1
            if verdict:
                groups[verdict, "+".join(sorted({k for k, _ in did})), general(text)].append((number, name, did, text))
            if verdict in BAD:
                print("%s %d on %s: %s\n    %s" % (verdict.upper(), number, name, "; ".join(t for _, t in did), text[:400]), flush=True)
    spent = time.monotonic() - began
    for verdict in ("strict", "lenient"):
        rows = sorted(((len(v), k[1], k[2], v[0]) for k, v in groups.items() if k[0] == verdict), key=lambda row: -row[0])
        if rows:
            print("%s: %d, by kind and message" % (verdict, totals[verdict]))
        for count, kinds_hit, text, (number, name, did, _) in rows[:40]:
            print("  %4d  %s | %s | e.g. %d on %s: %s" % (count, kinds_hit, text, number, name, "; ".join(t for _, t in did)[:120]))
    print("%d mutations in %.0f s (%.1f/s), slowest capture %.1f s: %s" % (
        sum(totals.values()), spent, sum(totals.values()) / max(spent, 0.1), slowest, ", ".join("%d %s" % (n, k) for k, n in totals.most_common())))
    return 1 if any(totals[k] for k in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
