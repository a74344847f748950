#!/usr/bin/env python3
"""How pishrink scales: time and memory on cards with millions of files, of 100 GB, 1 TB and more. Fails where more
memory is taken than README's limits say.

    proofs/scale.py [--inodes 1,2,5] [--sizes 100,1000] [--full] [--used] [--grow] [--huge] [--dir DIR] [--keep]

For each size (in GB) and number of files (in millions) a sparse card is made: an MBR up to 2 TB, mke2fs with its
defaults, and the kernel creates the files, a thousand to a folder, each with one preallocated block, one in
fifty with 4 KiB of data and one in a hundred deleted again.  Rows, each with caches dropped: seconds, seconds of the processor,
peak memory
  keep    pishrink capture --dry-run --no-shrink: nothing moves
  plan    pishrink capture --dry-run --headroom 0: nearly everything moves
  inspect pishrink inspect
  full    (--full) the capture to a sparse file, judged by e2fsck -fn and by counting its inodes
  expand  (--full) that image grown to the card's size again, judged by e2fsck -fn
and at the end how memory grows with a million files and with a TB.  --used fills 1 TB to the last group but one with
preallocated files, and then makes a hole of a block in each of their MiBs: a million pieces, and as many free stretches.  --grow takes a filesystem of 30 GB to 1 TB and beyond
16 TiB.  --huge adds a filesystem of 17 TiB (more than 2^32 blocks), with files of which one lies behind block 2^32:
captured, grown back, judged by e2fsck -fn and by the files' checksums.  These three are in memory, since no ordinary filesystem
of the host has files of 17 TiB.
The program is $PISHRINK (default: target/release/pishrink).  Needs root, loop devices, e2fsprogs and, for 5 million
files, about 5 GB below DIR (with --full twice that).  DIR may be a tmpfs; then the seconds are without any disk.
"""

import argparse
import collections
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
START = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
FOLDER = 1000

# README's limits, in MiB. A million files that stay or move; a TB that is in use everywhere, in blocks of 4 KiB (a bit a block in
# each of four bitmaps, and the descriptors of its groups).
PROGRAM = 48
MILLION_STAYING = 100
MILLION_MOVING = 150
TERABYTE = 130
MILLION_PIECES = 250
# What a capture holds besides its plan: stretches of the image that are read, hashed and written at the same time.
CAPTURE = 64


# MiB at the peak where nothing moves, and where nearly everything does, and what that took of the processor.
Plan = collections.namedtuple("Plan", "size files kept memory seconds")


def run(*words, ok=(0,), **more):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)
    if done.returncode not in ok:
        sys.exit(f"scale: {' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Mounted:
    """A filesystem within a card, mounted."""

    def __init__(self, card, offset, folder):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        self.loop = run("losetup", "--find", "--show", "--offset", offset, card).strip()
        run("mount", "-t", "ext4", "-o", "noatime,nodiscard,noinit_itable,delalloc,commit=60", self.loop, folder)

    def __enter__(self):
        return self.folder

    def __exit__(self, *_):
        run("umount", self.folder)
        run("losetup", "-d", self.loop)


def make_card(path, size, with_table=True):
    """A sparse card with one partition over all of it; a bare filesystem beyond what an MBR can say."""
    with open(path, "wb") as card:
        card.truncate(size)
    offset = 0
    if with_table and size <= 2 << 40:
        run("sfdisk", "-q", path, input="label: dos\nlabel-id: 0x5ca1e000\nstart=2048,type=83\n")
        offset = START
    blocks = (size - offset) // 4096
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", 4096, "-E", f"offset={offset},lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        path, blocks)
    return offset


def fill(folder, first, count):
    """Creates files number `first` and up."""
    data = os.urandom(4096)
    for number in range(first, first + count):
        if number % FOLDER == 0:
            here = f"{folder}/{number // FOLDER:06}"
            os.mkdir(here)
            os.chdir(here)
        name = f"file-{number:08}.gcode"
        file = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644)
        if number % 50 == 0:
            os.write(file, data)
        else:
            os.posix_fallocate(file, 0, 4096)
        os.close(file)
        if number % 100 == 99:
            os.unlink(name)
    os.chdir("/")


def measured(*words, ok=(0,)):
    """Runs pishrink with cold caches; returns seconds (in all, and of the processor), MiB at the peak and what it said."""
    run("sync")
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3")
    with tempfile.NamedTemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.monotonic()
        child = subprocess.Popen([PISHRINK, *map(str, words), "--json"], stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - begun
        out.seek(0)
        text = out.read()
        code = os.waitstatus_to_exitcode(status)
        if code not in ok:
            err.seek(0)
            sys.exit(f"scale: {words}: exit {code}\n{err.read().decode()}")
    return (seconds, usage.ru_utime + usage.ru_stime), usage.ru_maxrss / 1024, json.loads(text)


def inodes_of(image, offset):
    """How many inodes are in use, by the counts that e2fsck has just held against the bitmaps."""
    text = run("dumpe2fs", "-h", f"{image}?offset={offset}")
    field = {line.split(":")[0]: line.split(":")[1].strip() for line in text.splitlines() if ":" in line}
    return int(field["Inode count"]) - int(field["Free inodes"])


def row(kind, size, files, seconds, memory, more=""):
    print(f"{kind:7} {size / 1e9:8.0f} GB {files / 1e6:6.2f} M files {seconds[0]:7.1f} s ({seconds[1]:.1f} s CPU) {memory:6.0f} MiB  {more}", flush=True)


def bounded(size, files, memory, per_million, more=0):
    """Fails where a run took more memory than is promised."""
    most = PROGRAM + size / 1e12 * TERABYTE + files / 1e6 * per_million + more
    if memory > most:
        sys.exit(f"scale: {memory:.0f} MiB are more than the {most:.0f} that README promises")


def main():
    global PISHRINK
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inodes", default="1,2,5")
    parser.add_argument("--sizes", default="100,1000")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--used", action="store_true")
    parser.add_argument("--grow", action="store_true")
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--dir")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("scale: must be root")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    PISHRINK = os.environ.get("PISHRINK") or os.path.join(ROOT, "target/release/pishrink")
    if not os.access(PISHRINK, os.X_OK):
        run("cargo", "build", "--release", "--manifest-path", os.path.join(ROOT, "Cargo.toml"))
    if args.dir:
        os.makedirs(args.dir, exist_ok=True)
    work = tempfile.mkdtemp(prefix="scale.", dir=args.dir)
    try:
        plans = []
        for size in (int(float(size) * 1e9) // 4096 * 4096 for size in args.sizes.split(",") if size):
            plans += scale(work, size, [int(float(m) * 1e6) for m in args.inodes.split(",") if m], args)
        growth(plans)
        if args.used:
            in_memory(work, used)
        if args.grow:
            in_memory(work, grow)
        if args.huge:
            in_memory(work, huge)
    finally:
        if not args.keep:
            shutil.rmtree(work)


def scale(work, size, counts, args):
    """One card, filled more and more; returns how each plan went."""
    card = f"{work}/card.img"
    offset = make_card(card, size)
    made, plans = 0, []
    for count in sorted({0, *counts}):
        begun = time.monotonic()
        if count > made:
            with Mounted(card, offset, f"{work}/mnt") as folder:
                fill(folder, made, count - made)
            made = count
        spent = time.monotonic() - begun
        target = f"{work}/none.img"
        seconds, kept, said = measured("capture", "--dry-run", "--no-shrink", card, target)
        row("keep", size, made, seconds, kept, f"(made in {spent:.0f} s)")
        bounded(size, made, kept, MILLION_STAYING)
        seconds, memory, said = measured("capture", "--dry-run", "--headroom", 0, card, target)
        part = said["plan"]["partitions"][0]
        row("plan", size, made, seconds, memory,
            f"{said['plan']['image_bytes'] / 1e9:.2f} GB image, {part['moved_blocks']} blocks and {part['moved_inodes']} inodes move")
        bounded(size, made, memory, MILLION_MOVING)
        plans.append(Plan(size, made, kept, memory, seconds[1]))
        seconds, memory, _ = measured("inspect", card)
        row("inspect", size, made, seconds, memory)
        bounded(size, made, memory, MILLION_MOVING)
    if args.full:
        capture(work, card, size, offset, made)
    if not args.keep:
        os.unlink(card)
    return plans


def capture(work, card, size, offset, made):
    image = f"{work}/image.img"
    seconds, memory, _ = measured("capture", "--headroom", 0, card, image)
    run("e2fsck", "-fn", f"{image}?offset={offset}")
    run("e2fsck", "-fn", f"{card}?offset={offset}")
    same = inodes_of(image, offset) == inodes_of(card, offset)
    row("full", size, made, seconds, memory, f"{os.stat(image).st_blocks * 512 / 1e9:.2f} GB on disk, e2fsck clean, "
        + ("as many inodes" if same else "ANOTHER NUMBER OF INODES"))
    if not same:
        sys.exit(1)
    bounded(size, made, memory, MILLION_MOVING, CAPTURE)
    os.truncate(image, size)
    seconds, memory, said = measured("expand", image)
    run("e2fsck", "-fn", f"{image}?offset={offset}")
    row("expand", size, made, seconds, memory, f"{said['expansion']['written'] / 1e6:.1f} MB written, e2fsck clean")
    bounded(size, made, memory, MILLION_STAYING, CAPTURE)
    os.unlink(image)


def growth(plans):
    """What a million files and a TB cost."""
    for size in sorted({plan.size for plan in plans}):
        of_size = [plan for plan in plans if plan.size == size]
        first, last = of_size[0], of_size[-1]
        if last.files > first.files:
            millions = (last.files - first.files) / 1e6
            print(f"{size / 1e9:.0f} GB, a million files: {(last.kept - first.kept) / millions:.0f} MiB where they stay, "
                  f"{(last.memory - first.memory) / millions:.0f} MiB and {(last.seconds - first.seconds) / millions:.1f} s CPU where they move")
    empty = sorted(plan for plan in plans if plan.files == 0)
    if len(empty) > 1:
        first, last = empty[0], empty[-1]
        terabytes = (last.size - first.size) / 1e12
        print(f"no files, a TB: {(last.memory - first.memory) / terabytes:.0f} MiB and {(last.seconds - first.seconds) / terabytes:.1f} s CPU")


def in_memory(work, task):
    memory_disk = f"{work}/memory"
    os.makedirs(memory_disk, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=6g", "none", memory_disk)
    try:
        task(work, memory_disk)
    finally:
        run("umount", memory_disk)


def used(work, memory_disk):
    """1 TB that is in use everywhere, and then in a million pieces."""
    size, length, step = 10**12, 64 << 20, 1 << 20
    card, target = f"{memory_disk}/card.img", f"{memory_disk}/none.img"
    offset = make_card(card, size)
    files = pieces = 0
    for holes in (False, True):
        with Mounted(card, offset, f"{work}/mnt") as folder:
            stat = os.statvfs(folder)
            if not holes:
                files = int(stat.f_bavail * stat.f_frsize * 0.97) // length
            for number in range(files):
                file = os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY, 0o644)
                if holes:
                    for at in range(step // 2, length, step):
                        punch(file, at, 4096)
                        pieces += 1
                else:
                    os.posix_fallocate(file, 0, length)
                os.close(file)
        for kind, options in (("keep", ["--no-shrink"]), ("plan", ["--headroom", 0])):
            seconds, memory, said = measured("capture", "--dry-run", *options, card, target)
            moved = said["plan"]["partitions"][0]["moved_blocks"]
            row(kind, size, files, seconds, memory, f"all in use, {pieces} holes, {moved} blocks move")
            bounded(size, files, memory, MILLION_MOVING, pieces / 1e6 * MILLION_PIECES)


def punch(file, at, length):
    """Makes a hole in a file."""
    keep_size, punch_hole = 1, 2
    if LIBC.fallocate(file, keep_size | punch_hole, ctypes.c_long(at), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def grow(work, memory_disk):
    """A filesystem of 30 GB on larger and larger cards."""
    card = f"{memory_disk}/card.img"
    for size in (10**12, 16 << 40, 17 << 40):
        offset = make_card(card, 30 * 10**9 // 4096 * 4096, False)
        with Mounted(card, offset, f"{work}/mnt") as folder:
            fill(folder, 0, 10000)
        os.truncate(card, size)
        seconds, memory, said = measured("expand", card)
        told = said["expansion"]
        row("expand", size, 10000, seconds, memory, f"{told['written'] / 1e6:.1f} MB written, now {told['new_filesystem']} bytes")
        bounded(size, 10000, memory, MILLION_STAYING)
        run("e2fsck", "-fn", card)
        os.unlink(card)
    print("30 GB on larger cards: e2fsck clean")


def huge(work, memory_disk):
    """More than 2^32 blocks."""
    size = 17 << 40
    card, image = f"{memory_disk}/card.img", f"{memory_disk}/image.img"
    offset = make_card(card, size)
    sums = put_far(card, offset, f"{work}/mnt")
    seconds, peak, said = measured("capture", "--headroom", 0, card, image)
    part = said["plan"]["partitions"][0]
    row("full", size, len(sums), seconds, peak, f"{said['plan']['image_bytes'] / 1e9:.2f} GB image, {part['moved_blocks']} blocks move")
    bounded(size, len(sums), peak, MILLION_MOVING, CAPTURE)
    run("e2fsck", "-fn", image)
    check_far(image, offset, sums, f"{work}/mnt")
    os.unlink(card)
    os.truncate(image, size)
    seconds, peak, said = measured("expand", image)
    row("expand", size, len(sums), seconds, peak, f"{said['expansion']['written'] / 1e6:.1f} MB written")
    bounded(size, len(sums), peak, MILLION_STAYING, CAPTURE)
    run("e2fsck", "-fn", image)
    check_far(image, offset, sums, f"{work}/mnt")
    print("17 TiB: e2fsck clean, files equal, both times")


def put_far(card, offset, folder):
    """Makes files until one lies behind block 2^32; returns their checksums. Where a mount begins to look for room is left to
    chance, so there are many mounts."""
    sums = {}
    for number in range(300):
        data = hashlib.sha256(str(number).encode()).digest() * 5000
        with Mounted(card, offset, folder):
            os.mkdir(f"{folder}/{number}")
            name = f"{number}/file"
            with open(f"{folder}/{name}", "wb") as file:
                file.write(data)
            sums[name] = hashlib.sha256(data).hexdigest()
            run("sync", "-f", folder)
            lines = run("filefrag", "-v", "-b4096", f"{folder}/{name}").splitlines()
        if any(int(line.split(":")[2].split("..")[0]) >= 1 << 32 for line in lines if line.strip()[:1].isdigit()):
            return sums
    sys.exit("scale: the kernel puts no file behind block 2^32")


def check_far(image, offset, sums, folder):
    with Mounted(image, offset, folder):
        for name, expected in sums.items():
            with open(f"{folder}/{name}", "rb") as file:
                if hashlib.sha256(file.read()).hexdigest() != expected:
                    sys.exit(f"scale: {name} is another file")


main()
