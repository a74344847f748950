"""A reader of ext2/3/4 for judging: tolerant, independent of the crate, without the kernel.

`Fs(buffer)` works on anything that can be sliced (bytes, bytearray, mmap).  It knows where every
structure lies, its checksum (`mend_*` stores the right one, if the buffer is a bytearray), and can list the tree
(`tree()`): what a careful reader would return for each name, errors included as text.
Numbers from the disk are bounded, so that damaged images end in an `Oddity`, not in a hang.
"""

import hashlib
import struct

try:
    from crc32c import crc32c as _fast  # PyPI: crc32c, optional; ten times the speed of the table

    def crc(seed, data):
        return _fast(bytes(data), seed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
except ImportError:
    _TABLE = []
    for _n in range(256):
        for _ in range(8):
            _n = (_n >> 1) ^ (0x82F63B78 if _n & 1 else 0)
        _TABLE.append(_n)

    def crc(seed, data):
        table = _TABLE
        for byte in bytes(data):
            seed = table[(seed ^ byte) & 255] ^ (seed >> 8)
        return seed

_TABLE16 = []
for _n in range(256):
    for _ in range(8):
        _n = (_n >> 1) ^ (0xA001 if _n & 1 else 0)
    _TABLE16.append(_n)


def crc16(seed, data):
    for byte in bytes(data):
        seed = _TABLE16[(seed ^ byte) & 255] ^ (seed >> 8)
    return seed


HAS_JOURNAL, EXT_ATTR, RESIZE_INODE, DIR_INDEX, SPARSE_SUPER2, ORPHAN_FILE = 0x4, 0x8, 0x10, 0x20, 0x200, 0x1000
FILETYPE, RECOVER, JOURNAL_DEV, META_BG, EXTENTS, BIT64, MMP, FLEX_BG, EA_INODE, CSUM_SEED, LARGE_DIR, INLINE, ENCRYPT, CASEFOLD = (
    0x2, 0x4, 0x8, 0x10, 0x40, 0x80, 0x100, 0x200, 0x400, 0x2000, 0x4000, 0x8000, 0x10000, 0x20000)
SPARSE_SUPER, HUGE_FILE, GDT_CSUM, QUOTA, BIGALLOC, METADATA_CSUM, ORPHAN_PRESENT = 0x1, 0x8, 0x10, 0x100, 0x200, 0x400, 0x10000
EXTENTS_FL, INLINE_FL, EA_INODE_FL, INDEX_FL, HUGE_FILE_FL, ENCRYPT_FL = 0x80000, 0x10000000, 0x200000, 0x1000, 0x40000, 0x800

# name: (offset, struct code) in the superblock.
SB = {name: (offset + i * struct.calcsize(code), code) for offset, code, names in (
    (0x00, "I", "inodes_count blocks_count_lo r_blocks_count_lo free_blocks_count_lo free_inodes_count first_data_block log_block_size "
                "log_cluster_size blocks_per_group clusters_per_group inodes_per_group mtime wtime"),
    (0x34, "H", "mnt_count max_mnt_count magic state errors minor_rev_level"), (0x40, "I", "lastcheck checkinterval creator_os rev_level"),
    (0x50, "H", "def_resuid def_resgid"), (0x54, "I", "first_ino"), (0x58, "H", "inode_size block_group_nr"),
    (0x5C, "I", "feature_compat feature_incompat feature_ro_compat"), (0xC8, "I", "algorithm_usage_bitmap"),
    (0xCE, "H", "reserved_gdt_blocks"), (0xE0, "I", "journal_inum journal_dev last_orphan"), (0xFC, "B", "def_hash_version jnl_backup_type"),
    (0xFE, "H", "desc_size"), (0x100, "I", "default_mount_opts first_meta_bg mkfs_time"),
    (0x150, "I", "blocks_count_hi r_blocks_count_hi free_blocks_count_hi"), (0x15C, "H", "min_extra_isize want_extra_isize"), (0x160, "I", "flags"),
    (0x168, "Q", "mmp_block"), (0x174, "B", "log_groups_per_flex checksum_type"), (0x240, "I", "usr_quota_inum grp_quota_inum overhead_clusters"),
    (0x24C, "I", "backup_bgs0 backup_bgs1"), (0x268, "I", "lpf_ino prj_quota_inum checksum_seed"), (0x280, "I", "orphan_file_inum"), (0x3FC, "I", "checksum"))
    for i, name in enumerate(names.split())}

# name: (offset of the low part, its size, offset of the high part, its size) in a group descriptor.
GD = {"block_bitmap": (0, 4, 0x20, 4), "inode_bitmap": (4, 4, 0x24, 4), "inode_table": (8, 4, 0x28, 4), "free_blocks": (0xC, 2, 0x2C, 2),
      "free_inodes": (0xE, 2, 0x2E, 2), "used_dirs": (0x10, 2, 0x30, 2), "flags": (0x12, 2, 0, 0), "block_bitmap_csum": (0x18, 2, 0x38, 2),
      "inode_bitmap_csum": (0x1A, 2, 0x3A, 2), "itable_unused": (0x1C, 2, 0x32, 2), "checksum": (0x1E, 2, 0, 0)}
INODE_UNINIT, BLOCK_UNINIT, INODE_ZEROED = 1, 2, 4


class Oddity(Exception):
    """The filesystem is not as it should be."""


class Inode:
    """One decoded inode."""

    def __init__(self, fs, number):
        self.fs, self.number = fs, number
        self.at = fs.inode_offset(number)
        raw = self.raw = bytes(fs.buf[self.at:self.at + fs.inode_size])
        if len(raw) < fs.inode_size:
            raise Oddity("inode %d lies outside" % number)
        (self.mode, uid, size_lo, self.atime, self.ctime, self.mtime, self.dtime, gid, self.links, self.blocks_lo, self.flags) = struct.unpack_from("<HHIIIIIHHII", raw)
        self.i_block = raw[40:100]
        self.generation, acl_lo, size_hi = struct.unpack_from("<III", raw, 100)
        blocks_hi, acl_hi, uid_hi, gid_hi = struct.unpack_from("<HHHH", raw, 116)
        self.uid, self.gid = uid | uid_hi << 16, gid | gid_hi << 16
        self.type = self.mode & 0xF000
        self.size = size_lo | (size_hi << 32 if self.type in (0x8000, 0x4000) or number < 11 else 0)
        self.file_acl = acl_lo | (acl_hi << 32 if fs.has64 else 0)
        self.blocks = self.blocks_lo | (blocks_hi << 32 if fs.ro & HUGE_FILE else 0)
        self.extra = struct.unpack_from("<H", raw, 128)[0] if fs.inode_size > 128 else 0
        self.project = struct.unpack_from("<I", raw, 156)[0] if fs.inode_size > 128 and self.extra >= 32 else 0

    def time(self, low, extra_at):
        low = low - (1 << 32) if low >> 31 else low
        if self.fs.inode_size > 128 and self.extra + 128 >= extra_at + 4:
            extra = struct.unpack_from("<I", self.raw, extra_at)[0]
            return (low + ((extra & 3) << 32)) * 10**9 + (extra >> 2)
        return low * 10**9

    @property
    def inline(self):
        return bool(self.flags & INLINE_FL) and bool(self.fs.incompat & INLINE)

    @property
    def fast_symlink(self):
        if self.type != 0xA000 or self.inline:
            return False
        if self.fs.incompat & EA_INODE and self.file_acl:
            return 0 < self.size < 60  # the blocks of its attributes' inodes count as its own
        own = self.blocks - (self.fs.bs // 512 if self.file_acl else 0)
        return self.size < 60 and not self.flags & EXTENTS_FL and own <= 0 or (self.size < 60 and own <= 0)

    @property
    def maps_blocks(self):
        return self.type in (0x8000, 0x4000, 0xA000) and not self.inline and not self.fast_symlink or (
            self.type == 0 and self.number < self.fs.first_ino and self.number != 2)


class Fs:
    def __init__(self, buf):
        self.buf = buf
        self.unwritten, self.unwritten_paths = set(), set()
        self.reload()

    def reload(self):
        if len(self.buf) < 2048 or self.sb("magic") != 0xEF53:
            raise Oddity("no ext superblock")
        self.compat, self.incompat, self.ro = (self.sb("feature_" + k) for k in ("compat", "incompat", "ro_compat"))
        if self.sb("log_block_size") > 6:
            raise Oddity("block size")
        self.bs = 1024 << self.sb("log_block_size")
        self.has64 = bool(self.incompat & BIT64)
        self.inode_size = self.sb("inode_size") if self.sb("rev_level") else 128
        self.first_ino = self.sb("first_ino") if self.sb("rev_level") else 11
        self.first = self.sb("first_data_block")
        self.blocks = self.sb("blocks_count_lo") | (self.sb("blocks_count_hi") << 32 if self.has64 else 0)
        self.bpg, self.ipg = self.sb("blocks_per_group"), self.sb("inodes_per_group")
        self.cluster = 1 << max(0, min(20, self.sb("log_cluster_size") - self.sb("log_block_size"))) if self.ro & BIGALLOC else 1
        self.desc_size = max(32, self.sb("desc_size")) if self.has64 else 32
        if not 128 <= self.inode_size <= self.bs or not self.bpg or not self.ipg or self.desc_size > 1024 or self.bpg > self.bs * 8 * self.cluster:
            raise Oddity("superblock geometry")
        if self.blocks <= self.first or self.blocks * self.bs > len(self.buf):
            raise Oddity("superblock says %d blocks, the image holds %d" % (self.blocks, len(self.buf) // self.bs))
        self.groups = -(-(self.blocks - self.first) // self.bpg)
        self.desc_blocks = -(-self.groups // (self.bs // self.desc_size))
        self.inodes = self.sb("inodes_count")
        self.csum = bool(self.ro & METADATA_CSUM)
        self.seed = self.sb("checksum_seed") if self.incompat & CSUM_SEED else crc(0xFFFFFFFF, self.buf[1024 + 0x68:1024 + 0x78])

    # --- places and fields -----------------------------------------------------

    def sb(self, name, at=1024):
        offset, code = SB[name]
        return struct.unpack_from("<" + code, self.buf, at + offset)[0]

    def set_sb(self, name, value, at=1024):
        offset, code = SB[name]
        struct.pack_into("<" + code, self.buf, at + offset, value & ((1 << 8 * struct.calcsize(code)) - 1))

    def block(self, number):
        if not 0 <= number < self.blocks:
            raise Oddity("block %d is out of range" % number)
        return bytes(self.buf[number * self.bs:(number + 1) * self.bs])

    def group_start(self, group):
        return self.first + group * self.bpg

    def group_blocks(self, group):
        return min(self.bpg, self.blocks - self.group_start(group))

    @property
    def super_block(self):
        return 1024 // self.bs  # with bigalloc and 1 KiB blocks it is 1 although group 0 begins at 0

    def has_backup(self, group):
        if group == 0:
            return True
        if self.compat & SPARSE_SUPER2:
            return group in (self.sb("backup_bgs0"), self.sb("backup_bgs1"))
        if group == 1 or not self.ro & SPARSE_SUPER:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False

    def desc_offset(self, group):
        per_block = self.bs // self.desc_size
        index = group // per_block
        if self.incompat & META_BG and index >= self.sb("first_meta_bg"):
            start = self.group_start(index * per_block) if index else self.super_block
            block = start + self.has_backup(index * per_block)
        else:
            block = self.super_block + 1 + index
        return block * self.bs + group % per_block * self.desc_size

    def gd(self, group, name):
        at, (low, size, high, high_size) = self.desc_offset(group), GD[name]
        value = int.from_bytes(self.buf[at + low:at + low + size], "little")
        if self.desc_size >= 64 and high_size:
            value |= int.from_bytes(self.buf[at + high:at + high + high_size], "little") << 8 * size
        return value

    def set_gd(self, group, name, value):
        at, (low, size, high, high_size) = self.desc_offset(group), GD[name]
        self.buf[at + low:at + low + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        if self.desc_size >= 64 and high_size:
            self.buf[at + high:at + high + high_size] = (value >> 8 * size & ((1 << 8 * high_size) - 1)).to_bytes(high_size, "little")

    def inode_offset(self, number):
        if not 1 <= number <= self.inodes or (number - 1) // self.ipg >= self.groups:
            raise Oddity("inode number %d is out of range" % number)
        group, index = divmod(number - 1, self.ipg)
        return self.gd(group, "inode_table") * self.bs + index * self.inode_size

    def inode(self, number):
        return Inode(self, number)

    def live_inodes(self):
        """Numbers of the inodes that are marked used."""
        for group in range(self.groups):
            if self.uses_uninit and self.gd(group, "flags") & INODE_UNINIT:
                continue
            bitmap = self.block(self.gd(group, "inode_bitmap"))
            for index in range(self.ipg):
                if bitmap[index >> 3] >> (index & 7) & 1:
                    yield group * self.ipg + index + 1

    @property
    def uses_uninit(self):
        return bool(self.ro & (METADATA_CSUM | GDT_CSUM))

    # --- checksums ----------------------------------------------------------------

    def mend_super(self, at=1024):
        if self.csum:
            struct.pack_into("<I", self.buf, at + 0x3FC, crc(0xFFFFFFFF, self.buf[at:at + 1020]))

    def desc_checksum(self, group, at=None):
        at = self.desc_offset(group) if at is None else at
        raw = bytearray(self.buf[at:at + self.desc_size])
        if self.csum:
            raw[0x1E:0x20] = b"\0\0"
            return crc(crc(self.seed, struct.pack("<I", group)), raw) & 0xFFFF
        if self.ro & GDT_CSUM:
            uuid = bytes(self.buf[1024 + 0x68:1024 + 0x78])
            return crc16(crc16(crc16(0xFFFF, uuid), struct.pack("<I", group)), raw[:0x1E] + raw[0x20:])
        return 0

    def mend_desc(self, group):
        self.set_gd(group, "checksum", self.desc_checksum(group))

    def mend_bitmap(self, group, which):
        if self.csum:
            size = self.bpg // self.cluster // 8 if which == "block" else self.ipg // 8
            value = crc(self.seed, self.block(self.gd(group, which + "_bitmap"))[:size])
            self.set_gd(group, which + "_bitmap_csum", value if self.desc_size >= 64 else value & 0xFFFF)
        self.mend_desc(group)

    def inode_seed(self, number, generation):
        return crc(crc(self.seed, struct.pack("<I", number)), struct.pack("<I", generation))

    def inode_checksum(self, number):
        """Returns (checksum, whether the high half is stored)."""
        at = self.inode_offset(number)
        raw = bytearray(self.buf[at:at + self.inode_size])
        raw[0x7C:0x7E] = b"\0\0"
        high = self.inode_size > 128 and struct.unpack_from("<H", raw, 128)[0] >= 4
        if high:
            raw[0x82:0x84] = b"\0\0"
        return crc(self.inode_seed(number, struct.unpack_from("<I", raw, 100)[0]), raw), high

    def mend_inode(self, number):
        if self.csum:
            at = self.inode_offset(number)
            value, high = self.inode_checksum(number)
            struct.pack_into("<H", self.buf, at + 0x7C, value & 0xFFFF)
            if high:
                struct.pack_into("<H", self.buf, at + 0x82, value >> 16)

    def mend_extent_block(self, inode, block):
        if self.csum:
            at = block * self.bs
            tail = 12 + 12 * struct.unpack_from("<H", self.buf, at + 4)[0]
            if tail + 4 <= self.bs:
                seed = self.inode_seed(inode.number, inode.generation)
                struct.pack_into("<I", self.buf, at + tail, crc(seed, self.buf[at:at + tail]))

    def dir_block_kind(self, raw):
        """'root', 'node' or 'leaf', with the offset of the htree limit."""
        first = struct.unpack_from("<H", raw, 4)[0]
        if first == self.bs and raw[0:4] == b"\0\0\0\0":
            return "node", 8
        second = struct.unpack_from("<H", raw, 12 + 4)[0]
        if first == 12 and second == self.bs - 12 and raw[12 + 12 + 4 + 1] == 8:
            return "root", 32
        return "leaf", 0

    def mend_dir_block(self, inode, block):
        if not self.csum:
            return
        at = block * self.bs
        raw = bytearray(self.buf[at:at + self.bs])
        seed = self.inode_seed(inode.number, inode.generation)
        kind, limit_at = self.dir_block_kind(raw)
        if kind == "leaf":
            if raw[-12:-4] == b"\0\0\0\0\x0c\0\0\xde":
                struct.pack_into("<I", self.buf, at + self.bs - 4, crc(seed, raw[:-12]))
            return
        limit, count = struct.unpack_from("<HH", raw, limit_at)
        tail = limit_at + 8 * limit
        if tail + 8 <= self.bs and limit_at + 8 * count <= tail:
            value = crc(seed, raw[:limit_at + 8 * count])
            value = crc(crc(value, raw[tail:tail + 4]), b"\0\0\0\0")
            struct.pack_into("<I", self.buf, at + tail + 4, value)

    def mend_xattr_block(self, block):
        if self.csum:
            at = block * self.bs
            raw = bytearray(self.buf[at:at + self.bs])
            raw[16:20] = b"\0\0\0\0"
            struct.pack_into("<I", self.buf, at + 16, crc(crc(self.seed, struct.pack("<Q", block)), raw))

    def mend_orphan_block(self, inode, block):
        if self.csum:
            at = block * self.bs
            value = crc(crc(self.inode_seed(inode.number, inode.generation), struct.pack("<Q", block)), self.buf[at:at + self.bs - 8])
            struct.pack_into("<I", self.buf, at + self.bs - 4, value)

    def mend_journal_super(self, block):
        at = block * self.bs
        if struct.unpack_from(">I", self.buf, at + 0x28)[0] & 0x18:
            raw = bytearray(self.buf[at:at + 1024])
            raw[0xFC:0x100] = b"\0\0\0\0"
            struct.pack_into(">I", self.buf, at + 0xFC, crc(0xFFFFFFFF, raw))

    def mend_tree(self, number):
        """All checksums that contain this inode's number and generation."""
        try:
            inode = self.inode(number)
            self.mend_inode(number)
            if not inode.maps_blocks:
                return
            extents, nodes = self.map(inode)
            for block, kind in nodes:
                if kind == "extent":
                    self.mend_extent_block(inode, block)
            if inode.type == 0x4000:
                for _, block, length, _ in extents:
                    for k in range(min(length, 100000)):
                        self.mend_dir_block(inode, block + k)
        except (Oddity, struct.error):
            pass

    # --- maps -------------------------------------------------------------------------

    def map(self, inode):
        """Returns ([(logical, physical, length, unwritten)], [(node block, 'extent' or 'indirect')])."""
        extents, nodes = [], []
        if inode.flags & EXTENTS_FL:
            self._extent_node(inode.i_block, None, extents, nodes)
        else:
            n = self.bs // 4
            words = struct.unpack("<15I", inode.i_block)
            for i in range(12):
                if words[i]:
                    extents.append((i, words[i], 1, False))
            start = 12
            for level in (1, 2, 3):
                if words[11 + level]:
                    self._indirect(words[11 + level], level, start, extents, nodes)
                start += n ** level
        if len(extents) > 1 and not inode.flags & EXTENTS_FL:
            merged = [extents[0]]
            for e in extents[1:]:
                last = merged[-1]
                if e[0] == last[0] + last[2] and e[1] == last[1] + last[2]:
                    merged[-1] = (last[0], last[1], last[2] + 1, False)
                else:
                    merged.append(e)
            extents = merged
        return extents, nodes

    def _extent_node(self, raw, depth, extents, nodes):
        magic, entries, most, level = struct.unpack_from("<HHHH", raw)
        if magic != 0xF30A or entries > most or 12 + 12 * entries > len(raw) or level > 5 or (depth is not None and level != depth):
            raise Oddity("extent header")
        if len(nodes) > self.blocks:
            raise Oddity("extent tree without end")
        for i in range(entries):
            if level:
                logical, low, high = struct.unpack_from("<IIH", raw, 12 + 12 * i)
                child = low | high << 32
                nodes.append((child, "extent"))
                self._extent_node(self.block(child), level - 1, extents, nodes)
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", raw, 12 + 12 * i)
                unwritten = length > 32768
                extents.append((logical, low | high << 32, length - 32768 if unwritten else length, unwritten))

    def _indirect(self, block, level, start, extents, nodes):
        nodes.append((block, "indirect"))
        if len(nodes) > self.blocks:
            raise Oddity("indirect blocks without end")
        n = self.bs // 4
        for i, word in enumerate(struct.unpack("<%dI" % n, self.block(block))):
            if word and level == 1:
                extents.append((start + i, word, 1, False))
            elif word:
                self._indirect(word, level - 1, start + i * n ** (level - 1), extents, nodes)

    # --- contents -----------------------------------------------------------------------

    def xattrs(self, inode):
        """Returns {name: value}; values in other inodes are read."""
        out = {}
        if self.inode_size > 128 + 4:
            start = 128 + inode.extra + 4
            if inode.extra >= 4 and start < self.inode_size and inode.raw[start - 4:start] == b"\0\0\x02\xea":
                self._entries(inode.raw, start, start, out)
        if inode.file_acl:
            raw = self.block(inode.file_acl)
            if raw[:4] != b"\0\0\x02\xea":
                raise Oddity("xattr block of inode %d" % inode.number)
            self._entries(raw, 32, 0, out)
        return out

    def _entries(self, raw, at, base, out):
        while at + 16 <= len(raw) and raw[at:at + 4] != b"\0\0\0\0":
            name_len, index, offs, inum, size, _ = struct.unpack_from("<BBHIII", raw, at)
            name = raw[at + 16:at + 16 + name_len]
            if len(name) < name_len or size > 1 << 20:
                raise Oddity("xattr entry")
            if inum:
                value = self.read(self.inode(inum), 1 << 20)[:size]
            else:
                value = raw[base + offs:base + offs + size]
            if len(value) < size:
                raise Oddity("xattr value")
            out[b"%d." % index + name] = value
            at += 16 + (name_len + 3) // 4 * 4

    def inline_bytes(self, inode):
        data = inode.i_block
        try:
            data += self.xattrs_inline(inode)
        except Oddity:
            pass
        return data

    def xattrs_inline(self, inode):
        start = 128 + inode.extra + 4
        out = {}
        if inode.extra >= 4 and start < self.inode_size and inode.raw[start - 4:start] == b"\0\0\x02\xea":
            self._entries(inode.raw, start, start, out)
        return out.get(b"7.data", b"")

    def pieces(self, inode, limit):
        """Yields (offset, bytes) of the written parts below i_size."""
        size = min(inode.size, limit)
        extents, _ = self.map(inode)
        for logical, physical, length, unwritten in extents:
            if physical + length > self.blocks or physical < 1:
                raise Oddity("extent outside the filesystem")
            if unwritten or logical * self.bs >= size:
                continue
            data = bytes(self.buf[physical * self.bs:(physical + length) * self.bs])
            yield logical * self.bs, data[:size - logical * self.bs]

    def read(self, inode, limit):
        if inode.inline:
            return self.inline_bytes(inode)[:inode.size]
        if inode.fast_symlink:
            return inode.i_block[:inode.size]
        out = bytearray(min(inode.size, limit))
        for offset, data in self.pieces(inode, limit):
            out[offset:offset + len(data)] = data
        return bytes(out)

    def digest(self, inode):
        """A hash of size and contents in which zeros and holes are the same."""
        sha = hashlib.sha256(b"%d;" % inode.size)
        if inode.inline:
            data = self.inline_bytes(inode)[:inode.size].rstrip(b"\0")
            sha.update(b"0:" + data.ljust(self.bs, b"\0") if data else b"")
            return sha.hexdigest()[:24]
        for offset, data in self.pieces(inode, 1 << 62):
            for k in range(0, len(data), self.bs):
                part = data[k:k + self.bs]
                if part.count(0) != len(part):
                    sha.update(b"%d:" % (offset + k) + part.ljust(self.bs, b"\0"))
        return sha.hexdigest()[:24]

    def entries(self, inode):
        """Yields (name, inode number, file type) of a directory, `.` and `..` included."""
        if inode.inline:
            yield b"..", struct.unpack_from("<I", inode.i_block)[0], 2
            yield from self._dir_entries(inode.i_block[4:60], 56)
            rest = self.xattrs_inline(inode)[:max(0, inode.size - 60)]
            if rest:
                yield from self._dir_entries(rest, len(rest))
            return
        if inode.size > self.blocks * self.bs:
            raise Oddity("directory of %d bytes" % inode.size)
        extents, _ = self.map(inode)
        for logical, physical, length, unwritten in extents:
            if unwritten:
                raise Oddity("unwritten directory block")
            for k in range(length):
                if (logical + k) * self.bs < inode.size:
                    yield from self._dir_entries(self.block(physical + k), self.bs)

    def _dir_entries(self, raw, size):
        at = 0
        while at + 8 <= size:
            number, length, name_len, kind = struct.unpack_from("<IHBB", raw, at)
            if length == 65535 or (length == 0 and size == 65536):
                length = 65536
            if length < 8 or length % 4 or at + length > size or (number and name_len + 8 > length):
                raise Oddity("directory entry")
            if number:
                yield raw[at + 8:at + 8 + name_len], number, kind if self.incompat & FILETYPE else 0
            at += length

    def tree(self):
        """Returns {path: fields}: what each name shows, or `error=...` where it cannot be read."""
        out, done, stack, first = {}, {}, [(b"/", 2)], {}
        self.unwritten = set()  # inodes with unwritten extents
        self.unwritten_paths = set()
        ancestors = set()
        while stack:
            path, number = stack.pop()
            if len(out) > 2_000_000:
                raise Oddity("tree without end")
            if number not in done:
                done[number] = self.describe(number)
            elif done[number].startswith("type=4000"):
                out[path] = "error=directory reached twice"
                continue
            out[path] = done[number]
            if number in self.unwritten:
                self.unwritten_paths.add(path)
            if not done[number].startswith("type=4000"):
                first.setdefault(number, []).append(path)
                continue
            try:
                inode = self.inode(number)
                for name, child, kind in self.entries(inode):
                    if name in (b".", b".."):
                        continue
                    where = (path if path == b"/" else path + b"/") + name
                    if where in out:
                        out[where] += " twice"
                        continue
                    try:
                        self.inode_offset(child)
                    except Oddity as odd:
                        out[where] = "error=%s" % odd
                        continue
                    if child == number or child in ancestors:
                        out[where] = "error=directory reached twice"
                        continue
                    stack.append((where, child))
            except (Oddity, struct.error) as odd:
                out[path] += " error=%s" % odd
        for paths in first.values():
            if len(paths) > 1:
                head = min(paths)
                for path in paths:
                    out[path] += " same-as=" + repr(head)
        return out

    def describe(self, number):
        try:
            inode = self.inode(number)
        except (Oddity, struct.error) as odd:
            return "error=%s" % odd
        shown = inode.flags & ~(EXTENTS_FL | INDEX_FL | HUGE_FILE_FL)
        fields = ["type=%x mode=%o owner=%d:%d links=%d flags=%x" % (inode.type, inode.mode & 0xFFF, inode.uid, inode.gid, inode.links, shown),
                  "mtime=%d ctime=%d atime=%d" % (inode.time(inode.mtime, 136), inode.time(inode.ctime, 132), inode.time(inode.atime, 140))]
        if inode.project:
            fields.append("project=%d" % inode.project)
        try:
            if inode.type == 0x8000:
                fields.append("size=%d data=%s" % (inode.size, self.digest(inode)))
                if inode.maps_blocks:
                    fields.append("map=" + self.shape(inode))
            elif inode.type == 0xA000:
                fields.append("target=%r" % self.read(inode, 65536))
            elif inode.type in (0x2000, 0x6000):
                fields.append("device=%s" % inode.i_block[:8].hex())
            elif inode.type not in (0x4000, 0x1000, 0xC000):
                fields.append("error=no such type")
        except (Oddity, struct.error) as odd:
            fields.append("error=%s" % odd)
        try:
            for name, value in sorted(self.xattrs(inode).items()):
                if name != b"7.data":
                    fields.append("%r=%s" % (name, value.hex() if len(value) < 100 else hashlib.sha256(value).hexdigest()[:24]))
        except (Oddity, struct.error) as odd:
            fields.append("error=xattr: %s" % odd)
        return " ".join(fields)

    def shape(self, inode):
        """Written and unwritten ranges, merged, hashed."""
        merged = []
        extents = sorted(self.map(inode)[0])
        if any(e[3] for e in extents):
            self.unwritten.add(inode.number)
        for logical, _, length, unwritten in extents:
            if merged and merged[-1][1] == logical and merged[-1][2] == unwritten:
                merged[-1][1] = logical + length
            else:
                merged.append([logical, logical + length, unwritten])
        return "%d:%s" % (len(merged), hashlib.sha256(repr(merged).encode()).hexdigest()[:12])


def compare_trees(a, b, limit=8):
    """Differences of two `tree()` results; `..` entries and numbers are not part of them."""
    found = []
    for path in sorted(a.keys() | b.keys()):
        if a.get(path) != b.get(path):
            found.append("%r: %.300s -> %.300s" % (path, a.get(path, "(none)"), b.get(path, "(none)")))
    return found[:limit] + (["… %d differences in all" % len(found)] if len(found) > limit else [])
