#!/usr/bin/env python3
"""Judges pishrink on the filesystems that proofs/make_matrix.py left in FOLDER.

    proofs/judge_matrix.py [--quick] [--only NAME,...] [--jobs N] [--full] [--grow] [--keep] FOLDER
    proofs/judge_matrix.py --self-test FOLDER

The program is $PISHRINK (default: target/release/pishrink, else target/debug/pishrink).  For each case three captures, `--headroom 0`,
`--headroom 32MiB` and `--no-shrink`, and for each of them:
  exit code 0 · the source's bytes unchanged · e2fsck -fn exit 0 · proofs/lib/ext4_assert.py finds nothing ·
  the tree equal through our own reader (proofs/lib/ext4fs.py); through the kernel and through ext4-view as well for `--headroom 0`
  (for all three with --full)
and for `--headroom 0` also:
  size <= `resize2fs -M` repeated until it no longer changes (ratio printed) · the kernel mounts it read-write, fills it up, deletes, fills
  again: e2fsck -fn clean · resize2fs grows a copy back to the original size: clean, tree equal
With --grow `pishrink expand` grows copies to one block more, 2 and 16 times: the same judges.
--self-test runs proofs/standin.py instead (e2fsprogs behind our command line), once honest and once for each way of being
wrong: each must be noticed.  Needs root, e2fsprogs, loop devices and cargo (it builds the second reader).
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time


import standin
from lib import ext4_assert
from lib import fsfill
from lib import manifest
from lib.ext4fs import Oddity, compare_trees
from lib.matrix_cases import CASES
from lib.tools import MIB, ToolFailed, copy_sparse, fsck, loop, mounted, require_tools, run, sha256_sparse

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..")

VARIANTS = (("h0", ["--headroom", "0"]), ("h32", ["--headroom", "32MiB"]), ("full", ["--no-shrink"]))
TIMEOUT = 300


def find_program():
    for path in (os.environ.get("PISHRINK"), os.path.join(ROOT, "target/release/pishrink"), os.path.join(ROOT, "target/debug/pishrink")):
        if path and os.path.exists(path):
            return os.path.abspath(path)
    sys.exit("no pishrink: build it, or set PISHRINK")


def build_reader():
    """Builds the second reader, and returns its path: `cargo test` builds examples only as tests of themselves."""
    command = ["cargo", "build", "--quiet", "--example", "read-ext4", "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    messages = [json.loads(line) for line in built.splitlines()]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "read-ext4")


class Judge:
    def __init__(self, name, folder, options):
        self.name, self.options = name, options
        self.stem = os.path.join(folder, name)
        self.image = self.stem + ".img"
        with open(self.stem + ".json") as f:
            self.facts = json.load(f)
        self.journal = self.stem + ".journal" if os.path.exists(self.stem + ".journal") else None
        self.keep = CASES[name]["keep"]
        self.found = []
        self.ratio = None

    def wrong(self, variant, text):
        self.found.append("%s %s: %s" % (self.name, variant, str(text).strip().replace("\n", "\n    ")[:1500]))

    def run(self):
        began = time.monotonic()
        self.work = tempfile.mkdtemp(prefix="judge-%s-" % self.name, dir=self.options["scratch"])
        try:
            before = sha256_sparse(self.image)
            self.source = ext4_assert.open_image(self.image)
            self.source_tree = self.source.tree()
            errors = [p for p, v in self.source_tree.items() if "error=" in v]
            if errors:
                self.wrong("source", "our reader cannot read %r: %s" % (errors[0], self.source_tree[errors[0]]))
            for variant, flags in VARIANTS:
                out = os.path.join(self.work, variant + ".img")
                try:
                    if self.capture(variant, flags, out):
                        self.judge(variant, out)
                except (ToolFailed, OSError, Oddity, subprocess.TimeoutExpired) as error:
                    self.wrong(variant, "%s: %s" % (type(error).__name__, error))
                if os.path.exists(out) and not self.options["keep"]:
                    os.unlink(out)
            if sha256_sparse(self.image) != before:
                self.wrong("source", "THE SOURCE HAS CHANGED")
        except Exception as error:  # a judge that falls over has not judged
            self.wrong("judge", "%s: %s" % (type(error).__name__, error))
        finally:
            if not self.options["keep"]:
                shutil.rmtree(self.work, ignore_errors=True)
        return self.name, self.found, self.ratio, time.monotonic() - began

    def capture(self, variant, flags, out):
        command = [self.options["program"], "capture", self.image, out] + flags
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT)
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        if done.returncode != 0:
            self.wrong(variant, "exit %d: %s" % (done.returncode, said[-700:]))
            return False
        words = {"external journal": ["journal"]}.get(self.keep, [self.keep])
        if self.keep and variant != "full" and not any(word in said for word in words):
            self.wrong(variant, "the summary does not name %s: %s" % (self.keep, said[-300:]))
        for path in os.listdir(self.work):
            if path.endswith(".partial"):
                self.wrong(variant, "left behind: " + path)
        return True

    def judge(self, variant, out):
        deep = variant == "h0" or self.options["full"]
        clean = self.fsck(out)
        if clean:
            self.wrong(variant, clean)
        fs = ext4_assert.open_image(out)
        size = os.stat(out).st_size
        # The few bytes behind a last cluster may be left away.
        if (self.keep or variant == "full") and size not in (self.facts["size"], fs_bytes(self.image)):
            self.wrong(variant, "%d bytes; it should keep its %d" % (size, self.facts["size"]))
        strict = not self.keep and variant != "full"
        for text in ext4_assert.findings(fs, self.source, strict=strict, zeros=self.options["zeros"]):
            self.wrong(variant, text)
        for text in self.tree_differences(fs):
            self.wrong(variant, "tree: " + text)
        if deep:
            self.second_reader(variant, out)
            self.kernel(variant, out)
        if variant == "h0":
            if not self.keep:
                least = self.minimum()
                self.ratio = (size, least, self.facts["size"])
                if size > least:
                    self.wrong(variant, "%d bytes, resize2fs -M reaches %d (%+.2f %%)" % (size, least, 100 * (size / least - 1)))
            if not clean:
                self.write_and_check(variant, out)
                if not self.keep:
                    self.grow_back(variant, out)
                if self.options["grow"]:
                    self.expand(out)

    def tree_differences(self, fs, times=True):
        """resize2fs stamps what it moves; pishrink must not."""
        was, now = self.source_tree, fs.tree()
        if not times or not self.options["times"]:
            was, now = ({path: re.sub(r"[mc]time=\S+", "", fields) for path, fields in tree.items()} for tree in (was, now))
        return compare_trees(was, now)

    def fsck(self, image):
        if self.journal:
            with loop(self.journal) as device:
                return fsck(image, device)
        return fsck(image)

    def kernel(self, variant, out):
        if not self.facts["kernel"]:
            return
        with open(self.stem + ".manifest") as f:
            expected = f.read().splitlines()
        try:
            with self.mounted(out, "ro") as root:
                self.give_key(root)
                rows = list(manifest.lines(root))
        except ToolFailed as error:
            self.wrong(variant, "the kernel: %s" % error)
            return
        if not self.options["times"]:
            expected, rows = ([re.sub(r"[mc]time=\S+ ?", "", row).rstrip() for row in some] for some in (expected, rows))
        for text in manifest.compare(expected, rows):
            self.wrong(variant, "kernel's view: " + text)

    def mounted(self, out, options):
        if self.journal:
            return with_journal(out, options, self.facts["kind"], self.journal)
        return mounted(out, options, self.facts["kind"])

    def give_key(self, root):
        if "encrypt" in self.facts["features"]:
            try:
                fsfill.add_key(root)
            except OSError:
                pass

    def second_reader(self, variant, out):
        was, now = (subprocess.run([self.options["reader"], path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT)
                    for path in (self.image, out))
        if was.returncode == 0 and now.returncode != 0:
            self.wrong(variant, "ext4-view: " + now.stderr.decode()[-300:])
        elif was.returncode == 0:
            a, b = (sorted(done.stdout.decode("utf-8", "replace").splitlines()) for done in (was, now))
            # It reads what lies below unwritten extents instead of zeros (1.0.0): such files prove nothing here.
            skip = {path.decode("utf-8", "replace") for path in self.source.unwritten_paths}
            a, b = ([line for line in rows if line.split("\t")[0] not in skip] for rows in (a, b))
            # Its messages name blocks, which may move.
            a, b = ([line.split("\terror")[0] + "\terror" if "\terror" in line else line for line in rows] for rows in (a, b))
            if not self.options["times"]:
                a, b = ([re.sub(r"mtime=.*?}", "", row) for row in rows] for rows in (a, b))
            if a != b:
                different = sorted(set(a) ^ set(b))
                self.wrong(variant, "ext4-view: %d lines differ, e.g. %s" % (len(different), different[:3]))

    def minimum(self):
        """What resize2fs -M reaches, run until it no longer changes; remembered beside the image."""
        note = self.stem + ".minimum"
        if os.path.exists(note):
            with open(note) as f:
                return int(f.read())
        work = os.path.join(self.work, "minimum.img")
        copy_sparse(self.image, work)
        # No e2fsck -fy first: where it creates a lost+found it packs all directories as well.
        sizes = []
        while len(sizes) < 12 and (len(sizes) < 2 or sizes[-1] != sizes[-2]):
            run(["resize2fs", "-f", "-M", work], ok=(0, 1))
            sizes.append(fs_bytes(work))
        os.unlink(work)
        with open(note, "w") as f:
            f.write("%d\n" % sizes[-1])
        return sizes[-1]

    def write_and_check(self, variant, out):
        """The kernel must be able to go on living with it."""
        if not self.facts["kernel"]:
            return
        copy = os.path.join(self.work, "write.img")
        copy_sparse(out, copy)
        off = [f for f in ("quota", "project") if f in self.facts["features"]]
        if off:
            run(["tune2fs", "-O", ",".join("^" + f for f in off), copy])
        with self.mounted(copy, "") as root:
            self.give_key(root)
            use_up(root)
        said = self.fsck(copy)
        if said:
            self.wrong(variant, "after writing to it: " + said)
        os.unlink(copy)

    def grow_back(self, variant, out):
        copy = os.path.join(self.work, "back.img")
        copy_sparse(out, copy)
        os.truncate(copy, self.facts["size"])
        try:
            run(["resize2fs", "-f", copy])
        except ToolFailed as error:
            if "stable_inodes" not in self.facts["features"]:
                self.wrong(variant, "resize2fs to the old size: %s" % error)
            return
        said = self.fsck(copy)
        if said:
            self.wrong(variant, "grown by resize2fs: " + said)
        for text in self.tree_differences(ext4_assert.open_image(copy), times=False):
            self.wrong(variant, "grown by resize2fs: " + text)
        os.unlink(copy)

    def expand(self, out):
        size = os.stat(out).st_size
        blocks = self.source.bs
        for label, target in (("one block more", size + blocks), ("2x", 2 * size), ("16x", 16 * size), ("old size", self.facts["size"])):
            copy = os.path.join(self.work, "grow.img")
            copy_sparse(out, copy)
            os.truncate(copy, max(target, size))
            before = os.stat(copy).st_blocks
            done = subprocess.run([self.options["program"], "expand", copy, "--yes"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=TIMEOUT)
            where = "expand to " + label
            grown = (os.stat(copy).st_blocks - before) * 512
            if done.returncode != 0:
                self.wrong(where, "exit %d: %s" % (done.returncode, done.stdout.decode("utf-8", "replace")[-500:]))
            else:
                said = self.fsck(copy)
                if said:
                    self.wrong(where, said)
                fs = ext4_assert.open_image(copy)
                for text in ext4_assert.findings(fs, None, strict=False):
                    self.wrong(where, text)
                if label in ("2x", "16x") and not self.keep and fs.blocks * fs.bs + least_group(fs) <= target:
                    self.wrong(where, "only %d of %d bytes used" % (fs.blocks * fs.bs, target))
                for text in self.tree_differences(fs):
                    self.wrong(where, "tree: " + text)
                if grown > 16 * MIB and fs.uses_uninit:
                    self.wrong(where, "wrote %d bytes" % grown)
                if not said and self.facts["kernel"] and not {"quota", "project"} & set(self.facts["features"]):
                    with self.mounted(copy, "") as root:
                        use_up(root, most=96 * MIB)
                    said = self.fsck(copy)
                    if said:
                        self.wrong(where, "after writing to it: " + said)
            os.unlink(copy)


def least_group(fs):
    """Bytes of the smallest last group: a shorter rest stays outside of the filesystem."""
    own = 2 + -(-fs.ipg * fs.inode_size // fs.bs) + 1 + fs.desc_blocks + fs.sb("reserved_gdt_blocks")
    return (own + 50) * fs.bs


def with_journal(out, options, kind, journal):
    import contextlib

    @contextlib.contextmanager
    def inner():
        with loop(journal) as device, mounted(out, ",".join(filter(None, [options, "journal_path=" + device])), kind) as root:
            yield root
    return inner()


def fs_bytes(path):
    with open(path, "rb") as f:
        head = f.read(2048)
    low = int.from_bytes(head[1028:1032], "little")
    return low * (1024 << int.from_bytes(head[1048:1052], "little"))


def use_up(root, most=64 * MIB):
    """Deletes some, writes until it is full (or enough), deletes and writes again."""
    def until_full(folder, count):
        os.makedirs(folder, exist_ok=True)
        written = 0
        for i in range(count):
            with open("%s/%d" % (folder, i), "wb", buffering=0) as f:
                written += f.write(b"%08d" % i * 12500)
            if i % 3 == 0:
                os.symlink("x" * 200, "%s/link-%d" % (folder, i))
            if written > most:
                break

    top = sorted(name for name in os.listdir(root) if name.startswith(("top-", "again", "links")))
    for turn in range(2):
        for name in top[turn::4]:
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)
        fsfill.sync_fs(root)
        try:
            until_full(os.path.join(root, "fresh-%d" % turn), 4000)
        except OSError as error:
            if error.errno != 28:  # ENOSPC is what we came for
                raise


def judge_one(name, folder, options):
    return Judge(name, folder, options).run()


def options_of(args, folder):
    scratch = args.scratch or folder
    return {"program": find_program(), "reader": build_reader(), "full": args.full, "grow": args.grow, "keep": args.keep, "scratch": scratch,
            "zeros": not args.no_zeros, "times": not args.no_times}


def judge_all(names, folder, options, jobs):
    results = []
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        for name, found, ratio, seconds in pool.map(judge_one, names, [folder] * len(names), [options] * len(names)):
            sizes = "%11d  %5.3f of resize2fs -M  %5.3f of the source" % (ratio[0], ratio[0] / ratio[1], ratio[0] / ratio[2]) if ratio else " " * 30
            print("%-24s %-8s %5.1f s  %s" % (name, "ok" if not found else "%d WRONG" % len(found), seconds, sizes), flush=True)
            for text in found[:12]:
                print("    " + text, flush=True)
            if len(found) > 12:
                print("    … %d more" % (len(found) - 12))
            results.append((name, found, ratio))
    return results


def self_test(folder, args):
    """The judge must pass the honest stand-in (where resize2fs is right) and fail every broken one."""
    os.environ["PISHRINK"] = os.path.join(ROOT, "proofs/standin.py")
    options = options_of(args, folder)
    options["times"] = False  # resize2fs stamps what it moves
    options["zeros"] = False  # cp keeps garbage and the journal's old contents
    name = args.only or "grid-1k-i256-142"
    options["zeros"] = True
    garbage = {text.split(": ", 1)[1] for text in judge_one(name, folder, options)[1]}
    options["zeros"] = False
    baseline = {text.split(": ", 1)[1][:60] for text in judge_one(name, folder, options)[1]}
    print("honest stand-in: %d findings %s" % (len(baseline), sorted(baseline)[:5]))
    missed = []
    for how in standin.BREAKS:
        if how == "source":
            copy = tempfile.mkdtemp(dir=folder)
            for ending in (".img", ".json", ".manifest", ".minimum"):
                if os.path.exists(os.path.join(folder, name + ending)):
                    shutil.copy(os.path.join(folder, name + ending), copy)
        else:
            copy = folder
        if how == "unused-not-zero":
            options["zeros"] = True
        os.environ["STANDIN_BREAK"] = how
        found = [text for text in judge_one(name, copy, options)[1]
                 if text.split(": ", 1)[1][:60] not in baseline and (not options["zeros"] or text.split(": ", 1)[1] not in garbage)]
        options["zeros"] = False
        if how != "exit" and any("Traceback" in text for text in found):
            found = []  # the stand-in could not do the damage on this case, so nothing is proven
        print("%-16s %s" % (how, "noticed: " + found[0][:150].replace("\n", " ") if found else "NOT NOTICED"), flush=True)
        if not found:
            missed.append(how)
        if copy != folder:
            shutil.rmtree(copy)
    return 1 if missed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="names separated by commas; a * at the end matches a family")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="kernel and ext4-view for all three captures")
    parser.add_argument("--grow", action="store_true", default=os.environ.get("MATRIX_GROW") == "1", help="also judge `pishrink expand` (or MATRIX_GROW=1)")
    parser.add_argument("--keep", action="store_true", help="keep the results in the scratch folder")
    parser.add_argument("--no-zeros", action="store_true", help="do not ask for zeros in everything unused")
    parser.add_argument("--no-times", action="store_true", help="do not compare mtime and ctime (resize2fs changes them)")
    parser.add_argument("--scratch", help="where results go (default: FOLDER)")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    require_tools()
    folder = os.path.abspath(args.folder)
    if args.self_test:
        return self_test(folder, args)
    names = [n for n in CASES if CASES[n]["quick"] or not args.quick]
    if args.only:
        names = [n for n in CASES if any(n == w or (w.endswith("*") and n.startswith(w[:-1])) for w in args.only.split(","))]
    missing = [n for n in names if not os.path.exists(os.path.join(folder, n + ".json"))]
    if missing or not names:
        sys.exit("not made yet (proofs/make_matrix.py): %s" % " ".join(missing[:10]))
    began = time.monotonic()
    results = judge_all(names, folder, options_of(args, folder), args.jobs)
    bad = [name for name, found, _ in results if found]
    ratios = [ratio[0] / ratio[1] for _, _, ratio in results if ratio]
    if ratios:
        ratios.sort()
        print("size against resize2fs -M: best %.3f, median %.3f, worst %.3f" % (ratios[0], ratios[len(ratios) // 2], ratios[-1]))
    print("%d cases in %.0f s, %d wrong%s" % (len(results), time.monotonic() - began, len(bad), ": " + " ".join(bad) if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
