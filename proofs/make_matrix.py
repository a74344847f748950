#!/usr/bin/env python3
"""Makes the filesystems on which capture, flash and expand are judged.

    proofs/make_matrix.py [--quick] [--only NAME,...] [--jobs N] [--force] FOLDER
    proofs/make_matrix.py --list

For each case of proofs/lib/matrix_cases.py: mke2fs, filled by the kernel through a loop mount
(proofs/lib/fsfill.py), then whatever its history asks for (resize2fs, tune2fs, ...).  Leaves in FOLDER, per case:
    NAME.img        a sparse image of a bare filesystem, on which `e2fsck -fn` exits 0
    NAME.manifest   the tree as the kernel shows it (proofs/lib/manifest.py)
    NAME.json       size, features, mount type, sha256 of the image, seconds it took
A case that is there already is kept unless --force.  Needs root, e2fsprogs >= 1.47 and loop devices.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time
import zlib


from lib import fsfill
from lib import manifest
from lib.matrix_cases import CASES
from lib.tools import MIB, ToolFailed, fsck, loop, mounted, require_tools, run


def mount_kind(image):
    """Mounting by the right name keeps the kernel from switching features on."""
    text = run(["dumpe2fs", "-h", image])
    features = next(line for line in text.splitlines() if line.startswith("Filesystem features"))
    words = features.split(":")[1].split()
    if "extent" in words or "flex_bg" in words or "metadata_csum" in words or "uninit_bg" in words:
        return "ext4", words
    return ("ext3" if "has_journal" in words else "ext2"), words


def small_tree(folder):
    """For `mke2fs -d`, where the kernel cannot fill."""
    os.makedirs(folder + "/sub/deep", exist_ok=True)
    for i in range(400):
        with open(folder + "/sub/file-%03d-%s" % (i, "n" * (i % 120)), "wb") as f:
            f.write(b"%d " % i * (i * 13))
    for i in range(30):
        os.makedirs(folder + "/dir-%d/x" % i, exist_ok=True)
        if not os.path.islink(folder + "/dir-%d/link" % i):
            os.symlink("../sub/" + "l" * (i * 5), folder + "/dir-%d/link" % i)


def do_step(step, image, words, seed):
    what = step[0]
    sub = lambda text: text.format(img=image, **words)
    if what == "garbage":
        words["garbage"] = "1"
    elif what == "mkfs":
        _, size, arguments = step
        size = round(size * MIB)
        with open(image, "wb") as f:
            if "garbage" in words:
                f.write(os.urandom(size))
            f.truncate(size)
        small_tree(words["tree"])
        with open(words["bad"], "w") as f:
            f.write("\n".join(str(n) for n in (9000, 9001, 20000, 30011, size // 1024 - 3000, size // 1024 - 2)))
        if any("{jdev}" in word for word in arguments):
            with open(words["journal"], "wb") as f:
                f.truncate(8 * MIB)
            run(["mke2fs", "-q", "-F", "-b", "1024", "-O", "journal_dev", words["journal"]])
            with loop(words["journal"]) as device:
                words["jdev"] = device
                run(["mke2fs", "-q", "-F"] + [sub(word) for word in arguments] + [image])
            del words["jdev"]
        else:
            run(["mke2fs", "-q", "-F"] + [sub(word) for word in arguments] + [image])
    elif what == "fill":
        _, profile, options = step
        kind, features = mount_kind(image)
        if os.path.exists(words["journal"]):
            with loop(words["journal"]) as device, mounted(image, "journal_path=" + device, kind) as root:
                fsfill.fill(root, profile, seed)
        else:
            with mounted(image, options if kind == "ext4" else options.replace("nodelalloc", ""), kind) as root:
                fsfill.fill(root, profile, seed)
    elif what in ("run", "run?"):
        run([sub(word) for word in step[1]], ok=(0, 1) if "e2fsck" in step[1] or what == "run?" else (0,))
    elif what == "debugfs":
        # Commands in words["bad"], as it cannot take more than one in its arguments.
        with open(words["bad"], "w") as f:
            f.write("".join(line + "\n" for line in step[1:]))
        said = run(["debugfs", "-w", "-f", words["bad"], image])
        complaints = [line for line in said.splitlines() if not line.startswith(("debugfs", "Filesystem features"))]
        if complaints:
            raise ToolFailed("debugfs: " + "; ".join(complaints))
    elif what == "share":
        # The first file's blocks in place of those of the others, in every second one of the last: that takes a tree.
        blocks = lambda path: run(["debugfs", "-R", 'blocks "%s"' % path, image]).splitlines()[-1].split()
        first, lines = blocks(step[1]), []
        for path in step[2:]:
            every = 2 if path == step[-1] else 1
            count = min(len(first), len(blocks(path)))
            lines += ['sif "%s" bmap[%d] %s' % (path, i, first[i]) for i in range(0, count, every)]
        do_step(("debugfs", "feature shared_blocks") + tuple(lines), image, words, seed)
    elif what == "size":
        size = step[1]
        if size == "fs":
            text = run(["dumpe2fs", "-h", image])
            pick = lambda key: int(next(l for l in text.splitlines() if l.startswith(key)).split(":")[1])
            size = pick("Block count") * pick("Block size")
        else:
            size = round(size * MIB)
        os.truncate(image, size)
    elif what == "online":
        os.truncate(image, step[1] * MIB)
        kind, _ = mount_kind(image)
        with mounted(image, "", kind) as root:
            device = next(line.split()[0] for line in open("/proc/mounts") if line.split()[1] == root)
            offline = "Permission denied" in run(["resize2fs", device], ok=(0, 1)) and not may_resize_online()
        if offline:
            words["note"] = "grown offline: this machine's root lacks CAP_SYS_RESOURCE"
            run(["e2fsck", "-fy", image], ok=(0, 1))
            run(["resize2fs", image])
    elif what == "projects":
        names = [line.split("\t")[0] for line in take_manifest(image, mount_kind(image)[0], None) if "type=100000" in line or "type=40000" in line]
        names = [name for name in names if "\\x" not in name and "/flags/" not in name]
        script = "".join('sif "%s" projid %d\n' % (name, 4000000000 if i == 5 else 100 + i % 9) for i, name in enumerate(names[1:800:3]))
        with open(words["bad"], "w") as f:
            f.write(script)
        run(["debugfs", "-w", "-f", words["bad"], image])
    else:
        raise ValueError(what)


def may_resize_online():
    caps = next(line for line in open("/proc/self/status") if line.startswith("CapEff"))
    return bool(int(caps.split()[1], 16) >> 24 & 1)


def take_manifest(image, kind, journal):
    options = "ro"
    if journal:
        with loop(journal) as device, mounted(image, "ro,journal_path=" + device, kind) as root:
            return list(manifest.lines(root))
    with mounted(image, options, kind) as root:
        if kind == "ext4":
            try:
                fsfill.add_key(root)
            except OSError:
                pass  # no encryption in this filesystem
        return list(manifest.lines(root))


def make(name, folder, force):
    case, began = CASES[name], time.monotonic()
    stem = os.path.join(folder, name)
    image = stem + ".img"
    if os.path.exists(stem + ".json") and not force:
        return name, "kept", 0
    for ending in (".img", ".manifest", ".json", ".journal"):
        if os.path.exists(stem + ending):
            os.unlink(stem + ending)
    words = {"tree": stem + ".tree", "bad": stem + ".bad", "journal": stem + ".journal", "name": name}
    try:
        for number, step in enumerate(case["steps"]):
            do_step(step, image, words, zlib.crc32(("%s/%d" % (name, number)).encode()))
        journal = words["journal"] if os.path.exists(words["journal"]) else None
        kind, features = mount_kind(image)
        said = None
        if journal:
            with loop(journal) as device:
                said = fsck(image, device)
        else:
            said = fsck(image)
        if said:
            return name, "NOT CLEAN: " + said, time.monotonic() - began
        if case["kernel"]:
            rows = take_manifest(image, kind, journal)
            with open(stem + ".manifest", "w") as f:
                f.write("\n".join(rows) + "\n")
        size = os.stat(image).st_size
        with open(stem + ".json", "w") as f:
            json.dump({"name": name, "kind": kind, "features": features, "size": size, "keep": case["keep"], "kernel": case["kernel"], "note": words.get("note"),
                       "quick": case["quick"], "allocated": os.stat(image).st_blocks * 512,
                       "seconds": round(time.monotonic() - began, 1)}, f, indent=1)
            f.write("\n")
        return name, "made", time.monotonic() - began
    except (ToolFailed, OSError, subprocess.TimeoutExpired) as error:
        return name, "FAILED: %s" % error, time.monotonic() - began
    finally:
        subprocess.run(["rm", "-rf", words["tree"], words["bad"]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="names separated by commas; a * at the end matches a family")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    names = select(args)
    if args.list:
        for name in names:
            print(name + (" quick" if CASES[name]["quick"] else "") + (" keep=" + CASES[name]["keep"] if CASES[name]["keep"] else ""))
        return 0
    if not args.folder:
        parser.error("a folder is needed")
    require_tools()
    os.makedirs(args.folder, exist_ok=True)
    folder, failed = os.path.abspath(args.folder), 0
    began = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        for name, said, seconds in pool.map(make, names, [folder] * len(names), [args.force] * len(names)):
            print("%-24s %5.1f s  %s" % (name, seconds, said), flush=True)
            failed += said not in ("made", "kept")
    print("%d filesystems in %.0f s, %d failed" % (len(names), time.monotonic() - began, failed))
    return 1 if failed else 0


def select(args):
    names = [name for name in CASES if CASES[name]["quick"] or not args.quick]
    if args.only:
        wanted = args.only.split(",")
        names = [name for name in CASES if any(name == w or (w.endswith("*") and name.startswith(w[:-1])) for w in wanted)]
        if not names:
            sys.exit("no such case: " + args.only)
    return names


if __name__ == "__main__":
    sys.exit(main())
