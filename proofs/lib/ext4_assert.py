"""What e2fsck does not check of a filesystem that was captured, shrunk or grown.

    python3 ext4_assert.py [--shrunk] IMAGE [SOURCE]

`findings(fs, source=None, strict=...)` returns a list of texts, empty if all is right.  strict: the writer
made everything anew, so backups must be exact copies and everything unused must be zeros; otherwise (a filesystem
as mke2fs and the kernel left it, or one kept at full size) only what holds there too is judged.
"""

import mmap
import struct
import sys

from lib.ext4fs import (BLOCK_UNINIT, EXTENTS_FL, GD, HAS_JOURNAL, INODE_UNINIT, INODE_ZEROED, META_BG, ORPHAN_PRESENT, RECOVER,
                    RESIZE_INODE, SB, Fs, Oddity, crc)

# Superblock fields that a backup need not share: who it is, when it was written, its checksum,
# and state bits that are clear in a backup.
OWN = ["block_group_nr", "checksum", "state", "feature_incompat", "wtime", "mtime", "mnt_count", "lastcheck"]
GEOMETRY = ["inodes_count", "blocks_count_lo", "blocks_count_hi", "first_data_block", "log_block_size", "log_cluster_size", "blocks_per_group",
            "clusters_per_group", "inodes_per_group", "magic", "rev_level", "first_ino", "inode_size", "feature_compat", "feature_ro_compat",
            "reserved_gdt_blocks", "desc_size", "first_meta_bg", "log_groups_per_flex", "checksum_type"]
# Bytes of a superblock copy that may differ even where all else is copied: kbytes written, errors, times' high bytes.
LOOSE_BYTES = [(0x178, 8), (0x194, 0x6C), (0x274, 6)]


def findings(fs, source=None, strict=False, zeros=False):
    out = []
    for check in (superblock, descriptors, bitmaps, counts, resize_inode, backups, journal, inode_tables):
        try:
            check(fs, out, strict)
        except (Oddity, struct.error, IndexError) as odd:
            out.append("%s: %s" % (check.__name__, odd))
    if source is not None:
        against_source(fs, source, out)
    if zeros:
        try:
            unused_is_zero(fs, out)
        except (Oddity, struct.error, IndexError) as odd:
            out.append("unused_is_zero: %s" % odd)
    return out


def superblock(fs, out, strict):
    if fs.csum:
        stored, right = fs.sb("checksum"), crc(0xFFFFFFFF, fs.buf[1024:1024 + 1020])
        if stored != right:
            out.append("superblock checksum %08x, should be %08x" % (stored, right))
    if not fs.sb("state") & 1 or fs.sb("state") & 2:
        out.append("s_state is %x" % fs.sb("state"))
    if fs.incompat & RECOVER:
        out.append("needs_recovery is set")
    if fs.sb("last_orphan"):
        out.append("s_last_orphan is %d" % fs.sb("last_orphan"))
    if fs.ro & ORPHAN_PRESENT:
        out.append("orphan_present is set")
    if fs.sb("block_group_nr") != 0:
        out.append("the primary's s_block_group_nr is %d" % fs.sb("block_group_nr"))
    if fs.inodes != fs.groups * fs.ipg:
        out.append("s_inodes_count %d is not %d groups x %d" % (fs.inodes, fs.groups, fs.ipg))
    if fs.blocks * fs.bs > len(fs.buf):
        out.append("filesystem longer than the image")
    if strict and len(fs.buf) - fs.blocks * fs.bs >= 1 << 20:
        out.append("the image is %d bytes longer than its filesystem" % (len(fs.buf) - fs.blocks * fs.bs))
    if fs.sb("r_blocks_count_lo") * 2 > fs.blocks and not fs.has64:
        out.append("more than half is reserved")
    last = fs.groups - 1
    overhead = 2 + -(-fs.ipg * fs.inode_size // fs.bs)
    if fs.has_backup(last):
        overhead += 1 + fs.desc_blocks + fs.sb("reserved_gdt_blocks")
    if strict and last and fs.group_blocks(last) < fs.bpg and fs.group_blocks(last) < overhead + 50:
        out.append("the last group has %d blocks, below %d + 50" % (fs.group_blocks(last), overhead))


def descriptors(fs, out, strict):
    claimed = {}
    for g in range(fs.groups):
        stored, right = fs.gd(g, "checksum"), fs.desc_checksum(g)
        if stored != right:
            out.append("descriptor %d: checksum %04x, should be %04x" % (g, stored, right))
        flags, unused = fs.gd(g, "flags"), fs.gd(g, "itable_unused")
        # mke2fs sets INODE_ZEROED without the features as well; nobody looks at it there.
        if not fs.uses_uninit and (flags & (INODE_UNINIT | BLOCK_UNINIT) or unused):
            out.append("descriptor %d: flags %x and unused %d without checksums" % (g, flags, unused))
        if g in (0, fs.groups - 1) and flags & BLOCK_UNINIT:
            out.append("group %d is BLOCK_UNINIT" % g)
        if unused > fs.gd(g, "free_inodes"):
            out.append("group %d: %d slots unused, %d inodes free" % (g, unused, fs.gd(g, "free_inodes")))
        for name, length in (("block_bitmap", 1), ("inode_bitmap", 1), ("inode_table", -(-fs.ipg * fs.inode_size // fs.bs))):
            start = fs.gd(g, name)
            if start < fs.first or start + length > fs.blocks:
                out.append("group %d: %s at %d" % (g, name, start))
            for b in range(start, start + length):
                if b in claimed:
                    out.append("block %d belongs to %s and to %s of group %d" % (b, claimed[b], name, g))
                    break
                claimed[b] = "%s of group %d" % (name, g)
    if len(out) > 20:
        del out[20:]


def bits(raw, start, end):
    """True if all bits of start..end are ones."""
    return all(raw[i >> 3] >> (i & 7) & 1 for i in range(start, min(end, (start + 7) // 8 * 8))) and (
        end <= (start + 7) // 8 * 8 or raw[(start + 7) // 8:end // 8].count(255) == end // 8 - (start + 7) // 8)


def bitmaps(fs, out, strict):
    for g in range(fs.groups):
        flags = fs.gd(g, "flags") if fs.uses_uninit else 0
        if not flags & BLOCK_UNINIT:
            raw = fs.block(fs.gd(g, "block_bitmap"))
            clusters = -(-fs.group_blocks(g) // fs.cluster)
            if not bits(raw, clusters, fs.bs * 8):
                out.append("group %d: block bitmap padding from bit %d is not all ones" % (g, clusters))
            free = sum(8 - bin(b).count("1") for b in raw[:clusters // 8]) + sum(not raw[clusters >> 3] >> k & 1 for k in range(clusters & 7))
            if free != fs.gd(g, "free_blocks"):
                out.append("group %d: %d clusters free, descriptor says %d" % (g, free, fs.gd(g, "free_blocks")))
        if not flags & INODE_UNINIT:
            raw = fs.block(fs.gd(g, "inode_bitmap"))
            if not bits(raw, fs.ipg, fs.bs * 8):
                out.append("group %d: inode bitmap padding from bit %d is not all ones" % (g, fs.ipg))


def counts(fs, out, strict):
    for name, total in (("free_inodes", fs.sb("free_inodes_count")),
                        ("free_blocks", (fs.sb("free_blocks_count_lo") | (fs.sb("free_blocks_count_hi") << 32 if fs.has64 else 0)) // fs.cluster)):
        have = sum(fs.gd(g, name) for g in range(fs.groups))
        if have != total:
            out.append("%s: the groups have %d, the superblock %d" % (name, have, total))


def resize_inode(fs, out, strict):
    reserved = fs.sb("reserved_gdt_blocks")
    inode = fs.inode(7)
    if not fs.compat & RESIZE_INODE:
        if strict and (reserved or any(inode.i_block)):
            out.append("resize inode without its feature: reserved %d" % reserved)
        return
    n = fs.bs // 4
    if reserved > n:
        out.append("%d reserved GDT blocks" % reserved)
    if reserved == 0:
        # mke2fs and resize2fs leave a double-indirect block without entries, or nothing at all.
        return
    words = struct.unpack("<15I", inode.i_block)
    if any(words[:13]) or words[14] or not words[13]:
        out.append("resize inode: i_block is %r" % (words,))
        return
    if inode.size != (n * n + n + 12) * fs.bs:
        out.append("resize inode: i_size %d" % inode.size)
    if inode.links != 1 or inode.flags & EXTENTS_FL:
        out.append("resize inode: links %d, flags %x" % (inode.links, inode.flags))
    backup_groups = [g for g in range(1, fs.groups) if fs.has_backup(g)]
    sectors = (1 + reserved * (1 + len(backup_groups))) * (fs.bs // 512)
    if inode.blocks != sectors and fs.cluster == 1:
        out.append("resize inode: i_blocks %d, should be %d" % (inode.blocks, sectors))
    slots = [0] * n
    first = fs.super_block + 1 + fs.desc_blocks
    for k in range(reserved):
        slots[(fs.desc_blocks + k) % n] = first + k
    found = list(struct.unpack("<%dI" % n, fs.block(words[13])))
    if found != slots:
        at = next(i for i in range(n) if found[i] != slots[i])
        out.append("resize inode: slot %d of the double-indirect block is %d, should be %d" % (at, found[at], slots[at]))
    for k in range(reserved):
        right = [first + k + g * fs.bpg for g in backup_groups]
        right += [0] * (n - len(right))
        found = list(struct.unpack("<%dI" % n, fs.block(first + k)))
        if found != right:
            at = next(i for i in range(n) if found[i] != right[i])
            out.append("resize inode: reserved block %d, slot %d is %d, should be %d" % (first + k, at, found[at], right[at]))
            break


def backups(fs, out, strict):
    primary = bytes(fs.buf[1024:2048])
    for g in range(1, fs.groups):
        if not fs.has_backup(g):
            continue
        at = fs.group_start(g) * fs.bs
        for name in SB if strict else GEOMETRY:
            if name not in OWN and fs.sb(name, at) != fs.sb(name):
                out.append("backup in group %d: %s is %d, should be %d" % (g, name, fs.sb(name, at), fs.sb(name)))
        if fs.buf[at + 0x68:at + 0x88] != primary[0x68:0x88]:
            out.append("backup in group %d: UUID or label" % g)
        if fs.sb("block_group_nr", at) != min(g, 65535):
            out.append("backup in group %d: s_block_group_nr is %d" % (g, fs.sb("block_group_nr", at)))
        if (fs.sb("feature_incompat", at) ^ fs.incompat) & ~RECOVER or (strict and fs.sb("feature_incompat", at) & RECOVER):
            out.append("backup in group %d: s_feature_incompat is %x, primary %x" % (g, fs.sb("feature_incompat", at), fs.incompat))
        if strict and fs.sb("state", at) & 3:
            out.append("backup in group %d: s_state is %x" % (g, fs.sb("state", at)))
        if fs.csum:
            if fs.sb("checksum", at) != crc(0xFFFFFFFF, fs.buf[at:at + 1020]):
                out.append("backup in group %d: superblock checksum" % g)
        if strict:
            mine, own = bytearray(fs.buf[at:at + 1024]), bytearray(primary)
            for offset, length in LOOSE_BYTES + [(SB[name][0], struct.calcsize(SB[name][1])) for name in OWN]:
                mine[offset:offset + length] = own[offset:offset + length] = bytes(length)
            if mine != own:
                where = [i for i in range(1024) if mine[i] != own[i]]
                out.append("backup in group %d: bytes %s differ from the primary" % (g, where[:8]))
        if fs.incompat & META_BG:
            continue
        theirs = (fs.group_start(g) + 1) * fs.bs
        for k in range(fs.groups):
            source, copy = fs.desc_offset(k), theirs + k * fs.desc_size
            if strict:
                if fs.buf[copy:copy + fs.desc_size] != fs.buf[source:source + fs.desc_size]:
                    out.append("backup in group %d: descriptor %d differs from the primary" % (g, k))
                    break
            else:
                for name in ("block_bitmap", "inode_bitmap", "inode_table"):
                    low, size, _, _ = GD[name]
                    if fs.buf[copy + low:copy + low + size] != fs.buf[source + low:source + low + size]:
                        out.append("backup in group %d: %s of descriptor %d differs from the primary" % (g, name, k))
        if strict:
            source, length = (fs.super_block + 1) * fs.bs, fs.desc_blocks * fs.bs
            if fs.buf[source:source + length] != fs.buf[theirs:theirs + length]:
                out.append("backup in group %d: the descriptor blocks differ behind the last descriptor" % g)


def journal(fs, out, strict):
    number = fs.sb("journal_inum")
    if not fs.compat & HAS_JOURNAL or not number:
        return
    inode = fs.inode(number)
    if fs.sb("jnl_backup_type") == 1:
        words = bytes(fs.buf[1024 + 0x10C:1024 + 0x10C + 68])
        right = inode.i_block + struct.pack("<II", inode.size >> 32, inode.size & 0xFFFFFFFF)
        if words != right:
            out.append("s_jnl_blocks is not the journal inode's i_block and size")
    elif strict and fs.sb("jnl_backup_type") != 0:
        out.append("s_jnl_backup_type is %d" % fs.sb("jnl_backup_type"))
    extents, _ = fs.map(inode)
    raw = fs.block(extents[0][1])
    magic, kind, _, size, most, first, sequence, start = struct.unpack_from(">IIIIIIII", raw)
    if magic != 0xC03B3998 or kind not in (3, 4) or size != fs.bs or extents[0][0] != 0:
        out.append("journal superblock: magic %x, type %d, block size %d" % (magic, kind, size))
    if start:
        out.append("journal: s_start is %d" % start)
    if sum(e[2] for e in extents) < most or most * fs.bs > inode.size or first < 1:
        out.append("journal: s_maxlen %d, but %d blocks are mapped" % (most, sum(e[2] for e in extents)))


def inode_tables(fs, out, strict):
    """Where a group says its table is zeroed, the never-used slots must be zeros.

    e2fsck recounts bg_itable_unused from the highest inode in use, which leaves deleted inodes behind it: only strictly.
    """
    if not fs.uses_uninit or not strict:
        return
    for g in range(fs.groups):
        flags, unused = fs.gd(g, "flags"), fs.gd(g, "itable_unused")
        if flags & INODE_UNINIT:
            unused = fs.ipg
        if not flags & INODE_ZEROED or not unused:
            continue
        start = fs.gd(g, "inode_table") * fs.bs + (fs.ipg - unused) * fs.inode_size
        raw = bytes(fs.buf[start:start + unused * fs.inode_size])
        if raw.count(0) != len(raw):
            out.append("group %d is INODE_ZEROED, but its unused inode slots are not zeros" % g)


def against_source(fs, source, out):
    if source.sb("r_blocks_count_lo"):
        was, now = source.sb("r_blocks_count_lo") / source.blocks, fs.sb("r_blocks_count_lo") / fs.blocks
        if abs(was - now) > 0.005 + 1 / fs.blocks:
            out.append("reserved blocks: %.2f %% before, %.2f %% now" % (100 * was, 100 * now))
    for name in ("feature_compat", "feature_incompat", "feature_ro_compat", "inode_size", "blocks_per_group", "inodes_per_group", "desc_size",
                 "log_groups_per_flex", "def_hash_version", "default_mount_opts", "first_ino", "journal_inum" if source.sb("journal_inum") < 11 else "magic"):
        mask = {"feature_incompat": ~RECOVER, "feature_ro_compat": ~ORPHAN_PRESENT}.get(name, -1)
        if (fs.sb(name) ^ source.sb(name)) & mask:
            out.append("%s was %x, is %x" % (name, source.sb(name), fs.sb(name)))
    for offset, length, name in ((0x68, 16, "UUID"), (0x78, 16, "label"), (0xEC, 16, "hash seed"), (0x88, 64, "last mount point")):
        if fs.buf[1024 + offset:1024 + offset + length] != source.buf[1024 + offset:1024 + offset + length]:
            out.append("%s changed" % name)
    if source.compat & RESIZE_INODE and not fs.incompat & META_BG:
        n = fs.bs // 4
        was, now = source.desc_blocks + source.sb("reserved_gdt_blocks"), fs.desc_blocks + fs.sb("reserved_gdt_blocks")
        if fs.blocks < source.blocks and now != min(was, fs.desc_blocks + n):
            out.append("descriptor and reserved blocks: %d before, %d now" % (was, now))


def unused_is_zero(fs, out):
    """Free blocks, unused inode slots and the journal's body are zeros by construction."""
    dirty = []
    for g in range(fs.groups):
        if fs.gd(g, "block_bitmap") >= fs.blocks:
            continue  # told by descriptors() already
        if fs.uses_uninit and fs.gd(g, "flags") & BLOCK_UNINIT:
            continue
        raw, start = fs.block(fs.gd(g, "block_bitmap")), fs.group_start(g)
        for k in range(fs.group_blocks(g)):
            if not raw[k // fs.cluster >> 3] >> (k // fs.cluster & 7) & 1:
                at = (start + k) * fs.bs
                if bytes(fs.buf[at:at + fs.bs]).count(0) != fs.bs:
                    dirty.append(start + k)
    if dirty:
        out.append("%d free blocks are not zeros, e.g. %r" % (len(dirty), dirty[:5]))
    if fs.uses_uninit:
        for g in range(fs.groups):
            unused = fs.ipg if fs.gd(g, "flags") & INODE_UNINIT else fs.gd(g, "itable_unused")
            start = fs.gd(g, "inode_table") * fs.bs + (fs.ipg - unused) * fs.inode_size
            raw = bytes(fs.buf[start:start + unused * fs.inode_size])
            if raw.count(0) != len(raw):
                out.append("group %d: never-used inode slots are not zeros" % g)
    if fs.compat & HAS_JOURNAL and fs.sb("journal_inum"):
        for logical, physical, length, _ in fs.map(fs.inode(fs.sb("journal_inum")))[0]:
            begin = physical + (logical == 0)
            if any(bytes(fs.buf[begin * fs.bs:(physical + length) * fs.bs]).lstrip(b"\0")):
                out.append("the journal's old contents are stored")
                break


def open_image(path):
    with open(path, "rb") as f:
        return Fs(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))


def main():
    words = [w for w in sys.argv[1:] if w != "--shrunk"]
    shrunk = "--shrunk" in sys.argv
    found = findings(open_image(words[0]), open_image(words[1]) if words[1:] else None, strict=shrunk, zeros=shrunk)
    print("\n".join(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
