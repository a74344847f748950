"""Fills a mounted ext2/3/4 filesystem with every awkward kind of inode the kernel can make.

`fill(root, profile, seed)` is all that proofs/make_matrix.py calls.  A profile is a dict:
`parts` names functions of this file in the order they run, the other keys are their
parameters.  Every part tolerates that a feature is missing (no fallocate on ext2, no big
xattrs without `ea_inode`): what the kernel refuses is left out.  The same seed gives the same
names and contents; where they land is up to the kernel's allocator.
"""

import array
import ctypes
import errno
import fcntl
import os
import random
import shutil
import stat
import struct

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_SWAP_BOOT = 0x801C581F, 0x6611
FS_IOC_FIEMAP = 0xC020660B
FS_IOC_ADD_ENCRYPTION_KEY, FS_IOC_SET_ENCRYPTION_POLICY = 0xC0506617, 0x800C6613
FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_INLINE, FIEMAP_EXTENT_UNWRITTEN = 0x1, 0x200, 0x800
RAW_KEY = bytes(range(64))
REFUSED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM)

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_fs(path):
    fd = os.open(path, os.O_RDONLY)
    libc.syncfs(fd)
    os.close(fd)


def fiemap(fd):
    """Returns (logical, physical, length, flags) in bytes for each extent of an open file."""
    out, start, room = [], 0, 512
    while True:
        head = struct.pack("<QQLLLL", start, (1 << 64) - 1 - start, 0, 0, room, 0)
        buf = bytearray(head + bytes(56 * room))
        fcntl.ioctl(fd, FS_IOC_FIEMAP, buf, True)
        count = struct.unpack_from("<L", buf, 20)[0]
        flags = FIEMAP_EXTENT_LAST
        for i in range(count):
            logical, physical, length, _, _, flags = struct.unpack_from("<QQQQQL", buf, 32 + 56 * i)
            out.append((logical, physical, length, flags))
            start = logical + length
        if not count or flags & FIEMAP_EXTENT_LAST:
            return out


class Fill:
    def __init__(self, root, profile, seed):
        self.root, self.profile = root, profile
        self.rng = random.Random(seed)
        stats = os.statvfs(root)
        self.block = stats.f_bsize
        self.bytes = stats.f_blocks * stats.f_frsize

    def at(self, *parts):
        return os.path.join(self.root, *parts)

    def dir(self, *parts):
        os.makedirs(self.at(*parts), exist_ok=True)
        return self.at(*parts)

    def data(self, size):
        """Bytes in which a lost or swapped block shows: half of the blocks random, half repetitive."""
        if self.rng.random() < 0.5:
            return self.rng.randbytes(size)
        unit = self.rng.randbytes(24)
        return (unit * (size // 24 + 1))[:size]

    def write(self, path, data, mode=0o644, owner=None):
        with open(path, "wb", buffering=0) as f:
            f.write(data)
        os.chmod(path, mode)
        if owner is not None:
            os.chown(path, owner, owner)

    # --- parts ----------------------------------------------------------------

    def links(self):
        a, b = self.dir("links/a"), self.dir("links/b")
        self.write(a + "/one", self.data(70000))
        for other in (a + "/two", b + "/three", self.at("links/four")):
            os.link(a + "/one", other)
        self.write(b + "/many-0", b"many\n")
        for i in range(1, 120):
            os.link(b + "/many-0", b + "/many-%d" % i)

    def symlinks(self):
        base = self.dir("symlinks")
        for length in (1, 20, 58, 59, 60, 61, 64, 100, 155, 156, 157, 250, 1000, self.block - 1):
            os.symlink(("%d-" % length + "s" * 4096)[:min(length, 4095)], base + "/len-%d" % length)
        os.symlink(b"caf\xe9", os.fsencode(base + "/latin1-target"))
        os.symlink("../links/four", base + "/good")
        os.link(base + "/good", base + "/hard-linked-symlink", follow_symlinks=False)

    def xattrs(self):
        base = self.dir("xattrs")
        for i in range(self.profile.get("xattr_files", 24)):
            path = base + "/f%02d" % i
            self.write(path, self.data(self.rng.randrange(0, 3000)), owner=1000 + i % 3)
            self.setxattr(path, "user.small", b"v%d" % (i % 2))
            if i % 3 == 0:
                self.setxattr(path, "user.middle", self.rng.randbytes(90))
            if i % 4 == 0:
                self.setxattr(path, "user.big", self.rng.randbytes(self.block * 5 // 8))
            if i % 5 == 0:
                self.setxattr(path, "trusted.note", b"\x00binary\xff")
                self.setxattr(path, "user.empty", b"")
            if i % 7 == 0:
                self.setxattr(path, "user." + "n" * 240, b"long name")
        for i in range(4):
            folder = self.dir("xattrs/d%d" % i)
            self.setxattr(folder, "user.dir", self.rng.randbytes(30 + 200 * i))
        self.write(base + "/capable", b"#!/bin/true\n", 0o755)
        self.setxattr(base + "/capable", "security.capability",
                      struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
        os.symlink("t" * 80, base + "/link")
        self.setxattr(base + "/link", "trusted.link", b"on a symlink")

    def acls(self):
        base = self.dir("acls")
        for i in range(12):
            path = base + "/f%d" % i
            self.write(path, b"acl\n")
            self.setxattr(path, "system.posix_acl_access", acl([(1000 + k, 4 + k % 4) for k in range(i + 1)]))
        self.setxattr(base, "system.posix_acl_default", acl([(33, 7), (34, 5)]))
        for i in range(5):
            self.write(base + "/inherits-%d" % i, b"x")
            self.dir("acls/sub-%d/sub" % i)

    def shared_xattr(self):
        """Many inodes with equal attributes: one block, a high refcount."""
        base = self.dir("shared")
        wide = acl([(5000 + k, k % 8) for k in range(20)])
        for i in range(self.profile.get("shared_files", 200)):
            path = base + "/s%04d" % i
            if i % 10 == 9:
                os.mkdir(path)
            elif i % 10 == 8:
                os.mknod(path, stat.S_IFIFO | 0o644)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o640))
            if i % 10 != 8:
                self.setxattr(path, "user.label", b"the same on all of them, " * 8)
            self.setxattr(path, "system.posix_acl_access", wide)

    def big_xattrs(self):
        """Values that only ea_inode can hold; equal ones share an inode."""
        base = self.dir("bigxattrs")
        same = self.rng.randbytes(20000)
        for i in range(14):
            path = base + "/b%d" % i
            self.write(path, self.data(100))
            if i % 2:
                self.setxattr(path, "user.shared", same)
            else:
                self.setxattr(path, "user.own", self.rng.randbytes(3000 + 4500 * i))
            self.setxattr(path, "trusted.t", b"t")
        folder = self.dir("bigxattrs/dir")
        self.setxattr(folder, "user.shared", same)

    def linked_values(self):
        """Symlinks whose attributes have inodes of their own: only their length tells where the target is."""
        base = self.dir("linked")
        for length in (1, 59, 60, 200):
            os.symlink("t" * length, base + "/%d" % length)
            self.setxattr(base + "/%d" % length, "trusted.long", b"%d in an inode " % length * 90)

    def inline(self):
        base = self.dir("inline")
        for size in list(range(0, 200, 7)) + [59, 60, 61, 155, 156, 157, 160, 161]:
            self.write(base + "/i%d" % size, self.rng.randbytes(size))
        for i in range(12):
            folder = self.dir("inline/d%d" % i)
            for k in range(i):
                self.write(folder + "/%s%d" % ("n" * i, k), b"in an inline directory")
            if i % 2:
                self.setxattr(folder, "user.x", b"y" * (5 * i))
        for i in range(8):
            path = base + "/x%d" % i
            self.write(path, self.rng.randbytes(30 + 8 * i))
            self.setxattr(path, "user.attr", self.rng.randbytes(8 * i))
        grown = base + "/grown"
        self.write(grown, b"a" * 50)
        with open(grown, "ab") as f:
            f.write(b"b" * 9000)

    def sparse(self):
        base = self.dir("sparse")
        limit = 3 * GIB if self.profile.get("extents", True) else 60 * MIB
        with open(base + "/far", "wb", buffering=0) as f:
            f.truncate(limit + 12345)
            for offset in (0, 3 * self.block, limit // 3 + 777, limit):
                f.seek(offset)
                f.write(self.rng.randbytes(2500))
        with open(base + "/all-hole", "wb") as f:
            f.truncate(70 * MIB)
        for name, mode, eof in (("prealloc", 0, 0), ("beyond", KEEP_SIZE, 10000), ("empty-beyond", KEEP_SIZE, 0)):
            with open(base + "/" + name, "wb", buffering=0) as f:
                f.write(self.rng.randbytes(eof))
                self.try_fallocate(f.fileno(), mode, 0, 700 * KIB)
                f.seek(eof // 2)
                f.write(self.rng.randbytes(eof // 3))
        with open(base + "/unwritten-islands", "wb", buffering=0) as f:
            if self.try_fallocate(f.fileno(), 0, 0, 600 * KIB):
                for i in range(0, 600 * KIB // self.block, 7):
                    f.seek(i * self.block)
                    f.write(self.rng.randbytes(self.block))
                self.try_fallocate(f.fileno(), PUNCH_HOLE | KEEP_SIZE, 100 * KIB, 50 * KIB)
                self.try_fallocate(f.fileno(), ZERO_RANGE, 200 * KIB, 64 * KIB)

    def fragmented(self):
        """Files whose blocks alternate with their neighbours' (with nodelalloc, really so)."""
        base = self.dir("frag")
        files = [open(base + "/f%d" % i, "wb", buffering=0) for i in range(6)]
        for turn in range(self.profile.get("frag_turns", 60)):
            for f in files:
                f.write(self.rng.randbytes(self.block))
                if turn % 8 == 0:
                    os.fsync(f.fileno())
        for f in files:
            size = os.fstat(f.fileno()).st_size
            for _ in range(8):
                self.try_fallocate(f.fileno(), PUNCH_HOLE | KEEP_SIZE,
                                   self.rng.randrange(size // self.block) * self.block, self.block * 2)
            f.close()

    def deep(self):
        """One block in every other one, in random order: as many extents as blocks."""
        base = self.dir("deep")
        count = self.profile.get("deep_extents", 500)
        order = list(range(count))
        self.rng.shuffle(order)
        with open(base + "/comb", "wb", buffering=0) as f:
            for done, i in enumerate(order):
                os.pwrite(f.fileno(), struct.pack("<I", i) * (self.block // 4), 2 * i * self.block)
                if done % 200 == 199:
                    os.fsync(f.fileno())
        if self.profile.get("big_holes", True):
            # Logical block numbers near the top of what the format allows for this size.
            with open(base + "/stairs", "wb", buffering=0) as f:
                for power in range(0, 31):
                    try:
                        os.pwrite(f.fileno(), b"step %d" % power, self.block << power)
                    except OSError as e:
                        if e.errno != errno.EFBIG:
                            raise
                        break

    def indirect(self):
        """Block maps to the triple level, each level's first and last slots used."""
        base = self.dir("indirect")
        n = self.block // 4
        edges = [0, 11, 12, 13, 12 + n - 1, 12 + n, 12 + n + 1, 12 + 2 * n, 12 + n + n * n - 1,
                 12 + n + n * n, 12 + n + n * n + 1, 12 + n + n * n + n, 12 + n + 2 * n * n, 12 + n + 3 * n * n + n * 2 + 5]
        with open(base + "/triple", "wb", buffering=0) as f:
            for lblk in edges:
                try:
                    os.pwrite(f.fileno(), b"logical %d " % lblk * 4, lblk * self.block)
                except OSError as e:
                    if e.errno != errno.EFBIG:
                        raise
        self.write(base + "/double", self.rng.randbytes(self.block * (12 + n + min(n, 80))))
        self.write(base + "/single", self.rng.randbytes(self.block * 20))
        self.write(base + "/direct", self.rng.randbytes(self.block * 12))

    def htree(self):
        count, length = self.profile.get("htree", 1200), self.profile.get("htree_name", 60)
        base = self.dir("htree")
        target = base + "/.target"
        self.write(target, b"t")
        for i in range(count):
            name = base + "/" + ("%06d-" % i + "long-name-" * 26)[:length]
            if self.profile.get("htree_links") or i % 3:
                if i % 30000 == 29999:
                    target = name
                    self.write(name, b"u")
                else:
                    os.link(target, name)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600))
        for i in range(0, count, 11):
            os.unlink(base + "/" + ("%06d-" % i + "long-name-" * 26)[:length])

    def names(self):
        base = os.fsencode(self.dir("names"))
        for name in (b"caf\xe9.gcode", b"\xff\xfe\x80\x81", b"new\nline", b"tab\there", b"-dash", b"trailing ",
                     b"back\\slash", b'quote"\'', b"n" * 255, "drücker-ü-日本".encode(), b"*?[glob]", b"x"):
            self.write(os.path.join(base, name), b"name\n")
        os.makedirs(os.path.join(base, *[b"level-%d" % i for i in range(30)]))

    def nodes(self):
        base = self.dir("nodes")
        for name, mode, device in (("null", stat.S_IFCHR | 0o666, (1, 3)), ("mmcblk0", stat.S_IFBLK | 0o660, (179, 0)),
                                   ("bigminor", stat.S_IFCHR | 0o600, (1000, 70000)), ("old", stat.S_IFBLK | 0o640, (8, 255))):
            os.mknod(base + "/" + name, mode, os.makedev(*device))
            self.setxattr(base + "/" + name, "trusted.node", name.encode())
        os.mkfifo(base + "/fifo")
        os.mknod(base + "/socket", stat.S_IFSOCK | 0o755)
        for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1777), ("none", 0)):
            self.write(base + "/" + name, b"mode\n", mode)
        self.write(base + "/bigowner", b"owner\n")
        os.chown(base + "/bigowner", 70000, 4000000000)

    def times(self):
        base = self.dir("times")
        for name, when in (("before-1970", -86400 * 10**9 + 1), ("1901", -(1 << 31) * 10**9), ("after-2038", (1 << 31) * 10**9 + 123456789),
                           ("2262", (1 << 33) * 10**9 + 999999999), ("zero", 0)):
            self.write(base + "/" + name, b"time\n")
            os.utime(base + "/" + name, ns=(when, when))
        os.utime(base, ns=(10**18 + 1, 10**18 + 2))

    def flags(self):
        base = self.dir("flags")
        for name, bit in (("immutable", 0x10), ("append", 0x20), ("nodump", 0x40), ("noatime", 0x80), ("sync", 0x8),
                          ("secrm", 0x1), ("undelete", 0x2), ("notail", 0x8000), ("journal-data", 0x4000)):
            path = base + "/" + name
            self.write(path, b"flag " + name.encode())
            self.set_flags(path, bit)
        for name, bit in (("dirsync", 0x10000), ("topdir", 0x20000), ("immutable-dir", 0x10)):
            folder = self.dir("flags/" + name)
            self.write(folder + "/inside", b"x")
            self.set_flags(folder, bit)

    def owners(self):
        """Quota entries for many ids, so that the quota tree has several blocks."""
        base = self.dir("owners")
        for i in range(self.profile.get("owner_files", 260)):
            self.write(base + "/o%d" % i, self.data(i * 7 % 1500), owner=10000 + i * 37)

    def subdirs(self):
        base = self.dir("subdirs")
        for i in range(self.profile.get("subdirs", 200)):
            os.mkdir(base + "/%05d" % i)

    def spread_dirs(self):
        """Top-level directories: the kernel's allocator puts each into another group."""
        for i in range(self.profile.get("spread", 24)):
            folder = self.dir("top-%02d" % i)
            for k in range(3):
                self.write(folder + "/f%d" % k, self.data(self.rng.randrange(1, 20000)))

    def encrypted(self):
        base = self.dir("encrypted")
        add_key(self.root)
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        identifier = add_key(self.root)
        fcntl.ioctl(fd, FS_IOC_SET_ENCRYPTION_POLICY, struct.pack("<BBBBB3x", 2, 1, 4, 3, 0) + identifier)
        os.close(fd)
        for i in range(300):
            self.write(base + "/secret-%d-%s" % (i, "n" * (i % 100)), self.data(i * 40))
        os.symlink("../links/four", base + "/symlink")
        os.makedirs(base + "/a/b/c")
        self.write(base + "/a/b/c/file", self.data(50000))
        self.setxattr(base + "/a/b/c/file", "user.clear", b"xattrs are not encrypted")

    def last_inodes(self):
        """Uses up every inode, then gives back all but a few of the highest and some in between."""
        base = self.dir("inodes")
        made, folder = [], base
        highest = os.statvfs(self.root).f_files
        try:
            for i in range(self.profile.get("max_inodes", 60000)):
                if i % 400 == 0:
                    folder = base + "/d%d" % (i // 400)
                    os.mkdir(folder)
                path = folder + "/%d" % i
                kind = i % 16
                if kind == 3:
                    os.symlink("target-%d" % i, path)
                elif kind == 5:
                    os.mkfifo(path)
                else:
                    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
                made.append((os.lstat(path).st_ino, path))
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
        per_end = self.profile.get("keep_last", 40)
        made.sort()
        keep = {path for _, path in made[-per_end:]} | {path for _, path in self.rng.sample(made, min(len(made), 60))}
        for _, path in made:
            if path not in keep:
                os.unlink(path)
            elif stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "wb") as f:
                    f.write(self.data(self.rng.randrange(1, 3 * self.block)))
                self.setxattr(path, "user.kept", b"in one of the last inodes %d" % highest)
        for name in os.listdir(base):
            try:
                os.rmdir(base + "/" + name)
            except OSError as e:
                if e.errno != errno.ENOTEMPTY:
                    raise
        # Directories too: their new number goes into their own and their children's entries.
        fresh = [base + "/late-%d" % i for i in range(60)]
        try:
            for path in fresh:
                os.makedirs(path + "/child")
                self.write(path + "/child/file", b"below a late directory")
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise

    def last_blocks(self):
        """Fills the space with ballast, frees its end and random holes, writes the mix there."""
        ballast = self.dir(".ballast")
        sync_fs(self.root)
        free = os.statvfs(self.root).f_bfree * self.block
        piece = max(32 * KIB, free // 96) // self.block * self.block
        paths = []
        while piece >= self.block and len(paths) < 3000:
            path = ballast + "/%d" % len(paths)
            try:
                with open(path, "wb", buffering=0) as f:
                    if not self.try_fallocate(f.fileno(), 0, 0, piece):
                        data = b"ballast!" * (piece // 8)
                        if f.write(data) < piece:
                            piece //= 4
                paths.append(path)
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
                if os.path.exists(path):
                    os.unlink(path)
                piece //= 4
                piece -= piece % self.block
        sync_fs(self.root)
        places = []
        for path in paths:
            with open(path, "rb") as f:
                extents = fiemap(f.fileno())
            if extents:
                places.append((max(e[1] + e[2] for e in extents), path))
        places.sort()
        room, target = 0, self.profile.get("end_bytes", self.bytes // 12)
        while places and room < target:
            _, path = places.pop()
            room += os.stat(path).st_size
            os.unlink(path)
        # Holes of one to a few blocks all over the rest, so that files fall into pieces.
        for _, path in self.rng.sample(places, min(len(places), 30)):
            with open(path, "r+b") as f:
                size = os.fstat(f.fileno()).st_size
                for _ in range(6):
                    hole = self.rng.randrange(1, 5) * self.block
                    if hole < size:
                        self.try_fallocate(f.fileno(), PUNCH_HOLE | KEEP_SIZE,
                                           self.rng.randrange(0, (size - hole) // self.block + 1) * self.block, hole)
        sync_fs(self.root)  # what was freed can be had after the commit
        try:
            self.mix("end", target * 6 // 10)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
        sync_fs(self.root)
        shutil.rmtree(ballast)
        sync_fs(self.root)

    def mix(self, name, total):
        """Files, directories, slow symlinks, xattr blocks and combs of about `total` bytes."""
        self.dir(name)
        number = 0
        while total > 0:
            number += 1
            size = int(min(total, self.rng.choice((300, 3000, 20000, 90000, 400000)) * self.rng.uniform(0.5, 1.5)))
            folder = self.dir(name, "d%d" % (number % 7))
            path = folder + "/f%d" % number
            if number % 9 == 4:
                with open(path, "wb", buffering=0) as f:
                    order = list(range(30))
                    self.rng.shuffle(order)
                    for i in order:
                        os.pwrite(f.fileno(), self.rng.randbytes(self.block), i * 3 * self.block)
                        os.fsync(f.fileno())
                total -= 30 * self.block
                continue
            self.write(path, self.data(size), owner=number % 5 * 1000)
            total -= (size + self.block - 1) // self.block * self.block
            if number % 5 == 0:
                os.symlink("slow" * 40, path + ".link")
                self.setxattr(path, "user.end", self.rng.randbytes(self.block // 3))
                total -= 2 * self.block

    def mix_full(self):
        """Uses every last block."""
        try:
            self.mix("full", 1 << 40)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise

    def again(self):
        """Deletes a part of everything and writes anew: freed blocks hold garbage afterwards."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                info = os.lstat(path)
                if stat.S_ISREG(info.st_mode) and self.rng.random() < 0.12:
                    try:
                        os.unlink(path)
                    except OSError as e:
                        if e.errno != errno.EPERM:
                            raise
        self.mix("again", self.profile.get("again_bytes", MIB))

    def scraps(self):
        """What fits into a few dozen blocks; the kernel says when it is enough."""
        try:
            for i in range(self.profile.get("scraps", 40)):
                self.write(self.dir("scraps") + "/%d" % i, self.data(self.rng.randrange(1, 900)))
                if i % 4 == 1:
                    os.symlink("far/" * 30 + str(i), self.at("scraps/link-%d" % i))
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
        for i in range(0, 40, 3):
            if os.path.exists(self.at("scraps/%d" % i)):
                os.unlink(self.at("scraps/%d" % i))

    def all_inodes(self):
        """Leaves not one inode free."""
        base, folder = self.dir("inodes-all"), None
        try:
            for i in range(self.profile.get("max_inodes", 70000)):
                if i % 500 == 0:
                    folder = base + "/d%d" % (i // 500)
                    os.mkdir(folder)
                os.mkfifo(folder + "/%d" % i)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise

    def hard_links(self):
        base = self.dir("links")
        self.write(base + "/one", b"one of very many\n")
        for i in range(1, self.profile.get("hard_links", 31990)):
            os.link(base + "/one", base + "/%d" % i)

    def no_lost_found(self):
        os.rmdir(self.at("lost+found"))

    def renamed_lost_found(self):
        os.rename(self.at("lost+found"), self.at("found"))
        self.write(self.at("found/inside"), self.data(3000))

    def boot_loader(self):
        """Swaps a file into inode 5."""
        path = self.at("boot-loader")
        self.write(path, self.data(30000))
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.ioctl(fd, FS_IOC_SWAP_BOOT)
        finally:
            os.close(fd)

    # --- helpers --------------------------------------------------------------

    def setxattr(self, path, name, value):
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
            return True
        except OSError as e:
            if e.errno not in REFUSED + (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                raise
            return False

    def try_fallocate(self, fd, mode, offset, length):
        try:
            fallocate(fd, mode, offset, length)
            return True
        except OSError as e:
            if e.errno not in REFUSED:
                raise
            return False

    def set_flags(self, path, bits):
        fd = os.open(path, os.O_RDONLY)
        try:
            word = array.array("L", [0])
            fcntl.ioctl(fd, FS_IOC_GETFLAGS, word, True)
            word[0] |= bits
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, word, True)
        except OSError as e:
            if e.errno not in REFUSED:
                raise
        finally:
            os.close(fd)


def acl(users):
    """A POSIX ACL in the kernel's xattr format: named users beside the three classes."""
    entries = [(0x01, 7, 0xFFFFFFFF)] + [(0x02, perm, uid) for uid, perm in users]
    entries += [(0x04, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def add_key(root):
    """Gives the mounted filesystem the test's encryption key; returns its identifier."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # key_spec { type 2 = by identifier }, raw_size, key_id, reserved, raw
        arg = bytearray(struct.pack("<II32sII32s", 2, 0, bytes(32), len(RAW_KEY), 0, bytes(32)) + RAW_KEY)
        fcntl.ioctl(fd, FS_IOC_ADD_ENCRYPTION_KEY, arg, True)
        return bytes(arg[8:24])
    finally:
        os.close(fd)


STANDARD = ["links", "symlinks", "xattrs", "acls", "sparse", "fragmented", "deep", "htree", "names", "nodes", "times",
            "flags", "subdirs", "spread_dirs", "last_inodes", "last_blocks", "again"]


def fill(root, profile, seed):
    job = Fill(root, profile, seed)
    for part in profile.get("parts", STANDARD) + profile.get("more", []):
        getattr(job, part)()
    sync_fs(root)
