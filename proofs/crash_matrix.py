#!/usr/bin/env python3
"""Power cuts, by the hundred: does our recovery equal the kernel's?

    proofs/crash_matrix.py [--crashes N] [--only NAME] [--seed S] [--dir DIR] [--keep]

For each way to make a filesystem: mount it, let a child do random work, stop the child at random
moments and copy the image as it is.  Each copy is then recovered by `examples/replay`, by
`pishrink capture`, by a mount and (its journal only) by debugfs.  Judged:

- after the journal alone: every byte equals debugfs's, the superblock's write time aside
- all files in what was captured, their inodes, contents and attributes equal the kernel's
- e2fsck -fy on ours reports bitmaps and counts, which our caller rebuilds, and nothing else
- e2fsck -fn has nothing to say about what `pishrink capture --no-shrink` makes of the copy

One crash in five also loses the last commit block; of these only the first is judged.

The cases "fast-commit..." fsync all the time; of their crashes only those that left fast commits
count.  debugfs does not replay those, so the kernel alone is the judge.  Its recovery leaves link
counts, removed directories and i_blocks wrong, and cannot mount after an fsync of a file without
a name: its result is mended by e2fsck before the trees are compared, directories without their
times, and a crash that it cannot mount is only judged by e2fsck and does not count.  One in five
loses a fast commit in the middle, and with it those behind.

Needs root, loop devices, e2fsprogs; builds the program itself.  Exit 0: all equal.
"""

import argparse
import ctypes
import hashlib
import os
import random
import re
import signal
import stat
import struct
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MAGIC = bytes.fromhex("c03b3998")
KIB, MIB = 1 << 10, 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)

# name: (mke2fs arguments, mount options, megabytes)
CASES = {
    "ext4": ("-t ext4", "", 64),
    "ext4-data-journal": ("-t ext4 -J size=4", "data=journal", 64),
    "ext4-1k-small-log": ("-t ext4 -b 1024 -J size=1", "", 48),
    "ext4-1k-data-journal-small-log": ("-t ext4 -b 1024 -J size=2", "data=journal", 48),
    "ext4-2k-32bit": ("-t ext4 -b 2048 -O ^64bit -J size=4", "", 48),
    "no-csum": ("-t ext4 -b 1024 -O ^metadata_csum,^64bit -J size=1", "", 48),
    "no-csum-data-journal": ("-t ext4 -b 1024 -O ^metadata_csum -J size=2", "data=journal", 48),
    "uninit-bg": ("-t ext4 -O ^metadata_csum,uninit_bg -J size=4", "", 48),
    "v1-checksum": ("-t ext4 -b 1024 -O ^metadata_csum -J size=1", "journal_checksum", 48),
    "v1-async": ("-t ext4 -b 1024 -O ^metadata_csum,^64bit -J size=1",
                 "journal_async_commit,data=writeback", 48),
    "v3-async": ("-t ext4 -b 1024 -J size=1", "journal_async_commit,data=writeback", 48),
    "v3-async-journal": ("-t ext4 -b 1024 -J size=2", "journal_async_commit,data=journal", 48),
    "ext3": ("-t ext3 -b 1024 -J size=1", "", 48),
    "ext3-data-journal": ("-t ext3 -J size=4", "data=journal", 64),
    "ext3-128": ("-t ext3 -b 1024 -I 128 -J size=1", "", 48),
    "indirect": ("-t ext4 -b 1024 -O ^extent,^flex_bg,^64bit -J size=1", "", 48),
    "orphan-file": ("-t ext4 -b 1024 -O orphan_file,metadata_csum_seed -J size=1", "", 48),
    "orphan-file-no-csum": ("-t ext4 -O orphan_file,^metadata_csum -J size=4", "", 48),
    "orphan-file-inline": ("-t ext4 -O orphan_file,inline_data -J size=4 -I 512", "", 48),
    "ea-inode": ("-t ext4 -b 1024 -O ea_inode,inline_data -J size=1", "", 48),
    "fast-commit": ("-t ext4 -O fast_commit -J size=8", "", 64),
    "fast-commit-4k": ("-t ext4 -b 4096 -O fast_commit -J size=8", "", 96),
    "fast-commit-no-csum": ("-t ext4 -b 1024 -O fast_commit,^metadata_csum -J size=4", "", 64),
    "fast-commit-orphan-file": ("-t ext4 -b 2048 -O fast_commit,orphan_file,metadata_csum_seed -J size=8",
                                "", 64),
    "fast-commit-small-inodes": ("-t ext4 -b 1024 -I 128 -N 4096 -O fast_commit,uninit_bg,^metadata_csum"
                                 " -J size=4", "", 64),
    "truncate": ("-t ext4 -b 1024 -J size=1", "", 48),
    "truncate-indirect": ("-t ext4 -b 1024 -O ^extent,^64bit -J size=1", "", 48),
    "bigalloc": ("-t ext4 -b 1024 -O bigalloc -C 4096 -J size=1", "", 48),
    "bigalloc-data-journal": ("-t ext4 -b 2048 -O bigalloc,orphan_file,inline_data,ea_inode -C 16384 -J size=4", "data=journal", 64),
    "bigalloc-uninit": ("-t ext4 -b 1024 -O bigalloc,^metadata_csum,uninit_bg,^flex_bg -C 2048 -J size=1", "", 48),
    "truncate-bigalloc": ("-t ext4 -b 1024 -O bigalloc -C 8192 -J size=1", "", 48),
    "truncate-orphan-file": ("-t ext4 -b 1024 -O orphan_file -J size=1", "", 48),
}


def run(*words, check=True):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode != 0:
        raise RuntimeError("%s: %s" % (" ".join(words), done.stdout))
    return done


# --- the work that is interrupted ---------------------------------------------

class Worker:
    """Random changes below ROOT, forever."""

    def __init__(self, root, seed, ea_max):
        self.rng = random.Random(seed)
        self.root = root
        self.ea_max = ea_max
        self.open = []
        self.count = 0
        self.dirs = [root]
        self.files = []

    def name(self, parent):
        self.count += 1
        return os.path.join(parent, "%s-%d" % ("x" * self.rng.randrange(1, 60), self.count))

    def body(self):
        size = self.rng.choice((0, 40, 300, 5000, 30000, 200000, 700000))
        data = bytearray(self.rng.randbytes(self.rng.randrange(size + 1)))
        for at in range(0, len(data) - 4, 1024):
            if self.rng.random() < 0.3:
                data[at:at + 4] = MAGIC
        return bytes(data)

    def create(self):
        path = self.name(self.rng.choice(self.dirs))
        with open(path, "wb") as f:
            f.write(self.body())
            os.fchown(f.fileno(), self.rng.randrange(3), self.rng.randrange(3))
            if self.rng.random() < 0.3:
                f.flush()
                os.fsync(f.fileno())
        self.files.append(path)

    def many(self):
        parent = self.name(self.rng.choice(self.dirs))
        os.mkdir(parent)
        for _ in range(self.rng.randrange(10, 250)):
            path = self.name(parent)
            with open(path, "wb") as f:
                f.write(self.rng.randbytes(self.rng.randrange(300)))
        if self.rng.random() < 0.7:
            for name in os.listdir(parent):
                os.unlink(os.path.join(parent, name))
            os.rmdir(parent)
        else:
            self.dirs.append(parent)

    def take(self):
        return self.files.pop(self.rng.randrange(len(self.files)))

    def unlink(self):
        os.unlink(self.take())

    def orphan(self):
        path = self.take()
        self.open.append(os.open(path, os.O_RDWR))
        os.unlink(path)
        if len(self.open) > 12:
            os.close(self.open.pop(self.rng.randrange(len(self.open))))

    def rename(self):
        path = self.take()
        if self.rng.random() < 0.3 and self.files:
            target = self.rng.choice(self.files)
        else:
            target = self.name(self.rng.choice(self.dirs))
            self.files.append(target)
        os.rename(path, target)

    def append(self):
        with open(self.rng.choice(self.files), "ab") as f:
            f.write(self.body())

    def overwrite(self):
        path = self.rng.choice(self.files)
        with open(path, "r+b") as f:
            f.seek(self.rng.randrange(max(os.path.getsize(path), 1)))
            f.write(self.body())

    def truncate(self):
        path = self.rng.choice(self.files)
        os.truncate(path, self.rng.randrange(max(os.path.getsize(path), 1)))

    def sparse(self):
        path = self.name(self.rng.choice(self.dirs))
        with open(path, "wb") as f:
            for _ in range(self.rng.randrange(1, 150)):
                f.seek(self.rng.randrange(12 * MIB))
                f.write(b"sparse")
        self.files.append(path)

    def link(self):
        path = self.name(self.rng.choice(self.dirs))
        os.link(self.rng.choice(self.files), path)
        self.files.append(path)

    def symlink(self):
        path = self.name(self.rng.choice(self.dirs))
        os.symlink("t" * self.rng.randrange(1, 900), path)

    def xattr(self):
        # Equal values share a block; large ones take a block or an ea_inode.
        size = self.rng.choice((10, 200, 600, self.ea_max))
        value = bytes([65 + self.rng.randrange(3)]) * size
        os.setxattr(self.rng.choice(self.files), "user.%d" % self.rng.randrange(3), value)

    def device(self):
        os.mknod(self.name(self.rng.choice(self.dirs)), stat.S_IFCHR | 0o600, os.makedev(1, 300))

    def sync(self):
        fd = os.open(self.rng.choice(self.files), os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def step(self):
        used = os.statvfs(self.root)
        full = used.f_bavail < used.f_blocks * 0.25 or used.f_favail < 300
        if full and self.files:
            action = self.unlink
        else:
            action = self.rng.choice([
                self.create, self.create, self.create, self.many, self.unlink, self.orphan,
                self.rename, self.append, self.overwrite, self.truncate, self.sparse, self.link,
                self.symlink, self.xattr, self.xattr, self.device, self.sync, self.sync,
            ])
        if not self.files and action not in (self.create, self.many):
            action = self.create
        try:
            action()
        except OSError as error:
            if error.errno not in (28, 31, 34, 7, 40):  # full, or too many links or attributes
                raise


    def cut(self):
        """Makes a file of many extents and cuts it: with luck, a commit falls in between."""
        path = os.path.join(self.root, "cut-%d" % self.rng.randrange(4))
        with open(path, "wb") as f:
            f.write(self.rng.randbytes(4 * MIB))
            for _ in range(400):
                f.seek(self.rng.randrange(16000) * 1024)
                f.write(b"sparse")
        os.truncate(path, self.rng.randrange(1000, 2 * MIB))


class FsyncWorker(Worker):
    """Changes that fast commits can tell, each followed by an fsync."""

    def fsync(self, path):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def write(self, path, mode="wb", at=None):
        with open(path, mode) as f:
            if at is not None:
                f.seek(at)
            f.write(self.body()[:self.rng.choice((100, 4000, 60000, 400000))])
            f.flush()
            if self.rng.random() < 0.7:
                os.fsync(f.fileno())

    def create(self):
        path = self.name(self.rng.choice(self.dirs))
        self.write(path)
        self.files.append(path)

    def many(self):
        parent = self.name(self.rng.choice(self.dirs))
        os.mkdir(parent)
        self.dirs.append(parent)
        for _ in range(self.rng.choice((0, 3, 60, 120))):
            path = self.name(parent)
            with open(path, "wb") as f:
                f.write(b"one of many")
            self.files.append(path)
        if self.rng.random() < 0.8:
            # The kernel cannot replay a new directory that has got an index: a full commit.
            fd = os.open(parent, os.O_RDONLY)
            LIBC.syncfs(fd)
            os.close(fd)
        self.sync()

    def rmdir(self):
        empty = [path for path in self.dirs[1:] if not os.listdir(path)]
        if empty:
            os.rmdir(empty[0])
            self.dirs.remove(empty[0])
            self.sync()

    def unlink(self):
        for _ in range(self.rng.randrange(1, 20)):
            if len(self.files) > 10:
                os.unlink(self.take())
        self.sync()

    def rename(self):
        super().rename()
        self.sync()

    def link(self):
        super().link()
        self.fsync(self.files[-1])

    def append(self):
        self.write(self.rng.choice(self.files), "ab")

    def overwrite(self):
        path = self.rng.choice(self.files)
        self.write(path, "r+b", self.rng.randrange(os.path.getsize(path) + 1))

    def truncate(self):
        path = self.rng.choice(self.files)
        os.truncate(path, self.rng.randrange(2 * os.path.getsize(path) + 1))
        self.fsync(path)

    def sparse(self):
        path = self.name(self.rng.choice(self.dirs))
        with open(path, "wb") as f:
            for _ in range(self.rng.randrange(1, 60)):
                f.seek(self.rng.randrange(12 * MIB))
                f.write(b"sparse")
            f.flush()
            os.fsync(f.fileno())
        self.files.append(path)

    def fallocate(self):
        """Preallocates, or punches a hole (3: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)."""
        path = self.rng.choice(self.files)
        mode = self.rng.choice((0, 1, 3))
        fd = os.open(path, os.O_RDWR)
        at, length = self.rng.randrange(400000), self.rng.randrange(1, 300000)
        LIBC.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length))
        os.fsync(fd)
        os.close(fd)

    def open_unlinked(self):
        self.orphan()
        os.write(self.open[-1], b"nobody can find this")  # after that the kernel may not mount

    def step(self):
        used = os.statvfs(self.root)
        full = used.f_bavail < used.f_blocks * 0.25 or used.f_favail < 300
        action = self.unlink if full and len(self.files) > 10 else self.rng.choice(
            [self.create] * 6 + [self.rename] * 4 + [self.unlink, self.append, self.overwrite] * 3 +
            [self.truncate, self.sparse, self.link, self.fallocate, self.many, self.sync] * 2 +
            [self.rmdir] + ([self.symlink, self.xattr] if self.rng.random() < 0.1 else []) +
            ([self.open_unlinked] if self.rng.random() < 0.03 else []))
        if len(self.files) < 10:
            action = self.create
        try:
            action()
        except OSError as error:
            if error.errno not in (28, 31, 34, 7, 40):
                raise


def start_worker(root, seed, ea_max, kind):
    pid = os.fork()
    if pid:
        return pid
    try:
        worker = (FsyncWorker if kind == "fsync" else Worker)(root, seed, ea_max)
        while kind == "commit":
            with open(os.path.join(root, "committed"), "wb") as f:
                f.write(b"x")
                os.fsync(f.fileno())
        while True:
            worker.cut() if kind == "cut" else worker.step()
    except BaseException as error:
        print("worker:", repr(error), file=sys.stderr)
    finally:
        os._exit(1)


# --- recovering and judging ---------------------------------------------------

class Mount:
    def __init__(self, image, where, options):
        os.makedirs(where, exist_ok=True)
        self.where = where
        self.loop = run("losetup", "-f", "--show", image).stdout.strip()
        try:
            words = ["mount", "-t", "ext4", self.loop, where]
            run(*words, *(["-o", options] if options else []))
        except RuntimeError:
            run("losetup", "-d", self.loop)
            raise

    def __enter__(self):
        return self.where

    def __exit__(self, *_):
        for _ in range(50):
            if run("umount", self.where, check=False).returncode == 0:
                break
            time.sleep(0.1)
        run("losetup", "-d", self.loop)


def copy(source, target):
    run("cp", "--sparse=always", source, target)


def copy_at_rest(source, target):
    """Copies until two copies in a row are equal: the kernel's own threads may still write."""
    for _ in range(200):
        copy(source, target)
        if run("cmp", "-s", source, target, check=False).returncode == 0:
            copy(source, target + ".again")
            same = run("cmp", "-s", target, target + ".again", check=False).returncode == 0
            os.unlink(target + ".again")
            if same:
                return
        time.sleep(0.02)
    raise RuntimeError("the image does not come to rest")


def tree(root):
    facts = {}
    for folder, dirs, files in os.walk(root):
        for name in [""] + files + [d for d in dirs if os.path.islink(os.path.join(folder, d))]:
            path = os.path.join(folder, name) if name else folder
            try:
                s = os.lstat(path)
            except OSError as error:
                facts[os.path.relpath(path, root)] = [0, 0, repr(error)]
                continue
            fact = [s.st_mtime_ns, s.st_blocks, s.st_ino, oct(s.st_mode), s.st_nlink, s.st_uid,
                    s.st_gid, s.st_rdev]
            try:
                if stat.S_ISDIR(s.st_mode):
                    fact += sorted(os.listdir(path))
                else:
                    fact.append(s.st_size)
                if stat.S_ISLNK(s.st_mode):
                    fact.append(os.readlink(path))
                elif stat.S_ISREG(s.st_mode):
                    with open(path, "rb") as f:
                        fact.append(hashlib.sha256(f.read()).hexdigest())
                if not stat.S_ISLNK(s.st_mode):
                    for key in sorted(os.listxattr(path)):
                        fact.append((key, hashlib.sha256(os.getxattr(path, key)).hexdigest()))
            except OSError as error:
                fact.append(repr(error))
            facts[os.path.relpath(path, root)] = fact
    return facts


# The superblock's s_wtime, s_lastcheck, s_kbytes_written, s_wtime_hi and checksum: debugfs writes them.
PASSING = [(1024 + 0x30, 4), (1024 + 0x40, 4), (1024 + 0x178, 8), (1024 + 0x274, 1), (1024 + 0x3FC, 4)]


def differing_blocks(a, b):
    with open(a, "rb") as f, open(b, "rb") as g:
        at = 0
        while True:
            x, y = f.read(MIB), g.read(MIB)
            if at == 0:
                x, y = bytearray(x), bytearray(y)
                for start, count in PASSING:
                    x[start:start + count] = y[start:start + count]
            if x != y:
                for block in range(0, len(x), 1024):
                    if x[block:block + 1024] != y[block:block + 1024]:
                        yield (at + block) // 1024
            if not x:
                return
            at += len(x)


# What e2fsck may say about an image whose bitmaps and counts were not rebuilt yet.
HARMLESS = re.compile(
    r"^(e2fsck .*|Pass \d.*|.*(bitmap differences|Fix\? yes|count wrong).*|\s*|Padding at end.*|"
    r".*FILE SYSTEM WAS MODIFIED.*|.*: \d+/\d+ files.*|"
    r".*(block|inode) bitmap for group \d+ is not in group.*|"
    r"\[QUOTA WARNING\].*|Update quota info for quota type \d\? yes|"
    r"ext2fs_close2?: .*)$")


def judge(name, crash, work, options, is_torn):
    ours, theirs, journal = (os.path.join(work, x) for x in ("ours", "kernel", "debugfs"))
    problems = []
    replay = os.path.join(HERE, "target/debug/examples/replay")
    copy(crash, ours)
    copy(crash, journal)
    done = run(replay, "--journal-only", ours, check=False)
    told = done.stdout.strip()
    has_fast_commits = name.startswith("fast-commit")
    if "first fast commit is damaged" in told:
        try:
            with Mount(journal, os.path.join(work, "mnt"), options):
                return told, ["the kernel mounts it, but: " + told]
        except RuntimeError:
            return told + " (the kernel cannot mount it)", []
    if done.returncode != 0:
        return told, ["replay: " + told]
    if not has_fast_commits:  # such a journal debugfs just empties
        run("debugfs", "-n", "-w", "-R", "journal_run", journal)
        wrong = list(differing_blocks(ours, journal))
        if wrong:
            problems.append("journal: KiB %s differ from debugfs's" % wrong[:12])
    if is_torn:
        return told, problems
    copy(crash, ours)
    done = run(replay, ours, check=False)
    told = done.stdout.strip()
    if done.returncode != 0:
        return told, problems + ["orphans: " + told]
    copy(crash, theirs)
    try:
        with Mount(theirs, os.path.join(work, "mnt"), options) as where:
            pass
    except RuntimeError:
        if not has_fast_commits:
            raise
        told += " (the kernel cannot mount it)"
        theirs = None
    if has_fast_commits and theirs:
        run("e2fsck", "-fy", "-E", "no_optimize_extents", theirs, check=False)
    said = run("e2fsck", "-fn", theirs, check=False) if theirs else done
    if said.returncode != 0:
        problems.append("the kernel's own result is unsound: " + said.stdout)
    said = run("e2fsck", "-fy", "-E", "no_optimize_extents", ours, check=False)
    bad = [line for line in said.stdout.splitlines() if not HARMLESS.match(line)]
    if bad or said.returncode > 1:
        problems.append("e2fsck: exit %d, %s" % (said.returncode, bad[:12]))
    said = run("e2fsck", "-fn", ours, check=False)
    if said.returncode != 0:
        problems.append("e2fsck a second time: " + said.stdout)
    # The whole way: bitmaps, counts and quota are rebuilt, so there is nothing left to say.
    captured = os.path.join(work, "captured.img")
    capture = os.path.join(HERE, "target/debug/pishrink")
    done = run(capture, "capture", "--quiet", "--no-shrink", "--no-bmap", "--force", crash, captured,
               check=False)
    if done.returncode != 0:
        problems.append("capture: exit %d, %s" % (done.returncode, done.stdout.strip()))
        copy(ours, captured)
    said = run("e2fsck", "-fn", captured, check=False)
    if said.returncode != 0:
        problems.append("e2fsck of what was captured: " + said.stdout)
    if theirs is None:
        return told, problems
    trees = []
    truncated = int(re.search(r"truncated=(\d+)", told)[1])
    for image in (captured, theirs):
        with Mount(image, os.path.join(work, "mnt"), "ro,noload") as where:
            trees.append(tree(where))
    if has_fast_commits:
        for facts in trees:
            forget_what_fast_commits_do_not_tell(facts)
    if trees[0] != trees[1]:
        paths = sorted(set(trees[0]) | set(trees[1]))
        differ = [(p, trees[0].get(p), trees[1].get(p)) for p in paths if trees[0].get(p) != trees[1].get(p)]
        if has_fast_commits and all(x[1] and x[2] and was_directory(crash, x[1][2]) for x in differ):
            # It keeps a removed directory's blocks for the file that gets the number.
            return told + " (the kernel gives files a directory's blocks)", problems
        # The kernel gives files that it truncates a new mtime, and does not pack their extents.
        cut = [x for x in differ if x[1] and x[2] and x[1][2:] == x[2][2:] and x[1][1] <= x[2][1]]
        if len(cut) < len(differ) or len(set(x[1][2] for x in cut)) > truncated:
            problems.append("trees differ: %s" % differ[:3])
    if has_fast_commits:
        return told, problems
    free = [re.findall(r"^Free (?:blocks|inodes): +(\d+)", run("dumpe2fs", "-h", image).stdout, re.M)
            for image in (captured, theirs)]
    if free[0] != free[1] and not truncated:
        problems.append("free blocks and inodes: ours %s, the kernel's %s" % tuple(free))
    return told, problems


def forget_what_fast_commits_do_not_tell(facts):
    """The kernel gives directories the time of the recovery, their blocks and those of extent trees
    depend on how they grew, and what it forgot to remove e2fsck puts into lost+found."""
    for path, fact in list(facts.items()):
        fact[1] = 0
        if stat.S_ISDIR(int(fact[3], 8)):
            fact[0] = 0
            if path.startswith("lost+found/#") and len(fact) == 8:
                del facts[path]
    facts.pop("lost+found", None)


def was_directory(crash, number):
    """Was an inode a directory when the last full transaction was written back?"""
    return "Type: directory" in run("debugfs", "-c", "-R", "stat <%d>" % number, crash).stdout


def tear_fast_commits(crash, count, rng):
    """Damages one fast commit of `count`, not the first; False if there is no other."""
    if count < 2:
        return False
    said = run("debugfs", "-c", "-R", "bmap <8> 0", crash).stdout.split()[-1]
    size = int(re.search(r"^Block size: +(\d+)", run("dumpe2fs", "-h", crash).stdout, re.M)[1])
    with open(crash, "r+b") as f:
        f.seek(int(said) * size)
        superblock = f.read(1024)
        maxlen, = struct.unpack_from(">I", superblock, 0x10)
        blocks, = struct.unpack_from(">I", superblock, 0x54)
        # Each takes at least one block.
        at = maxlen - (blocks or 256) + 1 + rng.randrange(1, count)
        where = int(run("debugfs", "-c", "-R", "bmap <8> %d" % at, crash).stdout.split()[-1])
        f.seek(where * size + 5)
        byte = f.read(1)
        f.seek(where * size + 5)
        f.write(bytes([byte[0] ^ 1]))
    return True


def tear(crash):
    """Makes of a crash one whose last commit block did not arrive; False if there is none.

    What that transaction wrote may be in its place already, so the result need not be sound:
    only the journal's replay can be judged.
    """
    said = run("debugfs", "-R", "logdump -a", crash, check=False).stdout
    commits = re.findall(r"Found expected sequence \d+, type 2 \(commit block\) at block (\d+)", said)
    if not commits:
        return False
    where = run("debugfs", "-R", "bmap <8> %s" % commits[-1], crash).stdout.split()[-1]
    size = int(re.search(r"^Block size: +(\d+)", run("dumpe2fs", "-h", crash).stdout, re.M)[1])
    with open(crash, "r+b") as f:
        f.seek(int(where) * size)
        f.write(bytes(size))
    return True


def is_in_truncate(crash, work):
    """Did the power go while a file was being cut?"""
    trial = os.path.join(work, "trial")
    copy(crash, trial)
    told = run(os.path.join(HERE, "target/debug/examples/replay"), trial, check=False).stdout
    return re.search(r"truncated=[1-9]", told) is not None


def fast_commits(crash, work):
    """How many fast commits are there to replay?"""
    trial = os.path.join(work, "trial")
    copy(crash, trial)
    told = run(os.path.join(HERE, "target/debug/examples/replay"), trial, check=False).stdout
    found = re.search(r"fast_commits=(\d+)", told)
    return int(found[1]) if found else 0


def send(pids, number):
    for pid in pids:
        os.kill(pid, number)


def crash_case(name, args, crashes):
    make, options, megabytes = CASES[name]
    rng = random.Random("%s/%s" % (args.seed, name))
    work = os.path.join(args.dir, name)
    os.makedirs(work, exist_ok=True)
    live, crash = os.path.join(work, "live"), os.path.join(work, "crash")
    failures = made = 0
    while made < crashes:
        with open(live, "wb") as f:
            f.truncate(megabytes * MIB)
        run("mke2fs", "-q", "-F", *make.split(), live)
        is_fast = name.startswith("fast-commit")
        interval = 300 if is_fast else rng.choice((1, 5, 30))
        more = ",".join(x for x in (options, "commit=%d" % interval) if x)
        kinds = ("cut", "commit") if name.startswith("truncate") else ("mixed",)
        kinds = ("fsync",) if is_fast else kinds
        with Mount(live, os.path.join(work, "live-mnt"), more) as where:
            ea_max = 9000 if "ea_inode" in make else 3000
            workers = [start_worker(where, rng.random(), ea_max, kind) for kind in kinds]
            try:
                for _ in range(min(6, crashes - made)):
                    kind = "cut"
                    time.sleep(rng.uniform(0.2, 2.5))
                    if any(os.waitpid(pid, os.WNOHANG)[0] for pid in workers):
                        raise RuntimeError("a worker ended")
                    send(workers, signal.SIGSTOP)
                    copy_at_rest(live, crash)
                    for _ in range(60 if "cut" in kinds else 0):
                        if is_in_truncate(crash, work):
                            break
                        send(workers, signal.SIGCONT)
                        time.sleep(rng.uniform(0, 0.1))
                        send(workers, signal.SIGSTOP)
                        copy_at_rest(live, crash)
                    if is_fast:
                        is_torn = False
                        count = fast_commits(crash, work)
                        if count == 0:
                            send(workers, signal.SIGCONT)
                            continue
                        if rng.random() < 0.25 and tear_fast_commits(crash, count, rng):
                            kind = "half"
                    else:
                        is_torn = rng.random() < 0.2 and tear(crash)
                    told, problems = judge(name, crash, work, options, is_torn)
                    send(workers, signal.SIGCONT)
                    is_counted = "(the kernel" not in told
                    made += 1 if is_counted or problems else 0
                    print("%-32s %3d %-5s %s  %s%s" % (
                        name, made, "torn" if is_torn else kind, "FAILED" if problems else "ok", told,
                        "" if is_counted else "  (not counted)"), flush=True)
                    for problem in problems:
                        print("    " + problem)
                    if problems:
                        failures += 1
                        if args.keep:
                            copy(crash, os.path.join(args.dir, "%s-%d.img" % (name, made)))
            finally:
                send(workers, signal.SIGKILL)
                for pid in workers:
                    try:
                        os.waitpid(pid, 0)
                    except ChildProcessError:
                        pass
    for name in os.listdir(work):
        if os.path.isfile(os.path.join(work, name)):
            os.unlink(os.path.join(work, name))
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crashes", type=int, default=210)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--dir", default="/tmp/crash-matrix")
    parser.add_argument("--keep", action="store_true", help="keep the images that failed")
    args = parser.parse_args()
    manifest = os.path.join(HERE, "Cargo.toml")
    run("cargo", "build", "-q", "--manifest-path", manifest, "--bin", "pishrink", "--example", "replay")
    names = [name for name in CASES if args.only in name]
    each = -(-args.crashes // len(names))
    failures = sum(crash_case(name, args, each) for name in names)
    print("%d crashes, %d failed" % (each * len(names), failures))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
