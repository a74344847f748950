#!/usr/bin/env python3
"""Damages sound partition tables field by field, mends the checksums, and watches what `pishrink capture` does.

    proofs/mutate_tables.py [--seed N] [--count N | --minutes M] [--bases a,b] [--work FOLDER]
    proofs/mutate_tables.py --replay FILE...       judges saved inputs (.img.zst) again; exit 1 if any still offends

The disks (4 MiB, made once by sfdisk and sgdisk, kept in FOLDER/bases; that needs root): an MBR with two logical partitions behind one another in an extended
one, a GPT with sectors of 512 and of 4096 bytes, a hybrid. Each has a partition whose bytes say where they are, an ext filesystem and a swap area.
Each mutation changes 1 to 3 fields of MBR, EBRs, GPT headers or entries, in a GPT mostly with right checksums, in one copy or in both.

Allowed: refused (exit 3, one clear error line) — or an image that `sfdisk --verify` and `sgdisk -v` accept, if they accept the source, with the same
partitions by number, type and identity, sound filesystems with the same files, and everything else byte by byte — or, where there is no table any more, a copy of every byte.
What is printed, and saved (compressed) in FOLDER/found:
    crash      panics, signals, more than 20 s or 1 GiB, an exit code that is neither 0 nor 3, not one error line, leftovers, a changed input
    table      an image whose table the tools complain about, or that names other partitions
    contents   an image whose partitions hold something else
    strict     refused, though both tools find nothing in the source (listed by message; not an offence)
Exit status 1 if there was a crash, table or contents. The same seed on the same bases gives the same mutations.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib

import judge_matrix
import make_fuzz_bases
import mutate
from lib.ext4fs import Fs, Oddity, compare_trees
from lib.tools import require_tools, run


SECONDS, MEMORY = 20, 1 << 30
SECTOR = {"mbr": 512, "gpt": 512, "gpt4k": 4096, "hybrid": 512}
BAD = ("crash", "table", "contents")


def make_bases(folder):
    names = [name for name in SECTOR if not os.path.exists(os.path.join(folder, name + ".img"))]
    if names:
        require_tools()
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mutate-tables-") as work:
            disks = make_fuzz_bases.make_disks(work)
            for name in names:
                run(["cp", "--sparse=always", disks[name], os.path.join(folder, name + ".img")])


# --- damage -----------------------------------------------------------------------------

MBR_FIELDS = [("status", 0, 1), ("first CHS", 1, 3), ("type", 4, 1), ("last CHS", 5, 3), ("start", 8, 4), ("size", 12, 4), ("start", 8, 4), ("size", 12, 4), ("type", 4, 1)]
HEADER_FIELDS = [("signature", 0, 8), ("revision", 8, 4), ("header size", 12, 4), ("reserved", 20, 4), ("own lba", 24, 8), ("other lba", 32, 8), ("first usable", 40, 8),
                 ("last usable", 48, 8), ("guid", 56, 8), ("entries lba", 72, 8), ("entries", 80, 4), ("entry size", 84, 4)]
ENTRY_FIELDS = [("type", 0, 8), ("guid", 16, 8), ("first", 32, 8), ("last", 40, 8), ("first", 32, 8), ("last", 40, 8), ("attributes", 48, 8), ("name", 56, 8)]


class Damage:
    def __init__(self, buf, name, rng):
        self.buf, self.rng, self.size = buf, rng, SECTOR[name]
        self.sectors = len(buf) // self.size
        self.gpt = name != "mbr"
        self.near = [self.sectors, self.sectors - 1, self.sectors + 1, 1, 2, 63, 64, 1023, 1024, 1088, 3424, 3584, 4736, 5, 0xF, 0x85, 0xEE, 0x83, 0x82, 0x0C, 0xFFFFFFFF, 128, 92, 512, 34]

    def put(self, at, size):
        old = int.from_bytes(self.buf[at:at + size], "little")
        new = mutate.twist(self.rng, old, size, self.near)
        self.buf[at:at + size] = new.to_bytes(size, "little")
        return "%x -> %x" % (old, new)

    def ebrs(self):
        """Where the links of the chain lie in the sound table."""
        start = next((struct.unpack_from("<I", self.buf, 446 + 16 * k + 8)[0] for k in range(4) if self.buf[446 + 16 * k + 4] in (5, 0xF, 0x85)), None)
        found, at = [], start
        while at is not None and at not in found and at < self.sectors and len(found) < 20:
            found.append(at)
            link = struct.unpack_from("<I", self.buf, at * 512 + 446 + 16 + 8)[0]
            at = start + link if link else None
        return found

    def mbr(self, sectors, label):
        sector = self.rng.choice(sectors)
        pick = self.rng.random()
        if pick < 0.05:
            return "%s signature %s" % (label, self.put(sector * 512 + 510, 2))
        slot = self.rng.randrange(4 if pick < 0.3 else 2 if label == "ebr" else 3)
        name, offset, size = self.rng.choice(MBR_FIELDS)
        if pick > 0.93:
            other = self.rng.randrange(4)
            a, b = (sector * 512 + 446 + 16 * k for k in (slot, other))
            self.buf[a:a + 16], self.buf[b:b + 16] = self.buf[b:b + 16], self.buf[a:a + 16]
            return "%s at %d: slots %d and %d swapped" % (label, sector, slot, other)
        return "%s at %d slot %d %s %s" % (label, sector, slot, name, self.put(sector * 512 + 446 + 16 * slot + offset, size))

    def headers(self):
        return [self.size, len(self.buf) - self.size]

    def both(self, change, is_entry):
        """The same damage in one copy or in both."""
        copies = self.headers() if self.rng.random() < 0.7 else [self.rng.choice(self.headers())]
        state, said = self.rng.getstate(), None
        for at in copies:
            self.rng.setstate(state)
            base = struct.unpack_from("<Q", self.buf, at + 72)[0] * self.size if is_entry else at
            if base + 128 * 128 > len(self.buf) and is_entry:
                continue
            said = change(base)
        return (said or "nothing") + (" (one copy)" if len(copies) == 1 else "")

    def header(self, at):
        name, offset, size = self.rng.choice(HEADER_FIELDS)
        return "gpt %s %s" % (name, self.put(at + offset, size))

    def entry(self, at):
        slot = self.rng.choice((0, 1, 2, 2, 3, 127))
        name, offset, size = self.rng.choice(ENTRY_FIELDS)
        if self.rng.random() < 0.08:
            self.buf[at + 128 * 5:at + 128 * 6] = self.buf[at + 128 * slot:at + 128 * (slot + 1)]
            return "gpt entry %d twice" % slot
        return "gpt entry %d %s %s" % (slot, name, self.put(at + 128 * slot + offset, size))

    def mend(self):
        for at in self.headers():
            lba, = struct.unpack_from("<Q", self.buf, at + 72)
            count, size = struct.unpack_from("<II", self.buf, at + 80)
            if count * size < 1 << 20 and lba * self.size + count * size <= len(self.buf):
                struct.pack_into("<I", self.buf, at + 88, zlib.crc32(self.buf[lba * self.size:lba * self.size + count * size]))
            length = min(struct.unpack_from("<I", self.buf, at + 12)[0], self.size)
            struct.pack_into("<I", self.buf, at + 16, 0)
            struct.pack_into("<I", self.buf, at + 16, zlib.crc32(self.buf[at:at + length]))

    def once(self):
        if not self.gpt:
            ebrs = self.ebrs()
            return self.mbr(ebrs, "ebr") if ebrs and self.rng.random() < 0.55 else self.mbr([0], "mbr")
        pick = self.rng.random()
        if pick < 0.2:
            return self.mbr([0], "protective mbr")
        return self.both(self.header, False) if pick < 0.5 else self.both(self.entry, True)

    def some(self):
        did = [self.once() for _ in range(self.rng.choice((1, 1, 1, 2, 3)))]
        if self.gpt:
            if self.rng.random() < 0.9:
                self.mend()
            else:
                did.append("not mended")
        return did


# --- judging ------------------------------------------------------------------------------

def accepted(image, sector):
    """What sfdisk and sgdisk say of a table: [complaints], and the partitions as sfdisk lists them, None without a table."""
    def ask(path):
        verify = subprocess.run(["sfdisk", "--verify", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        complaints = [] if verify.returncode == 0 and "No errors detected" in verify.stdout else ["sfdisk: " + verify.stdout.replace(path, "disk").strip()[:300]]
        listed = subprocess.run(["sfdisk", "--json", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        text = listed.stdout.decode("utf-8", "replace")
        try:
            table = json.loads(text[text.index("{"):])["partitiontable"] if listed.returncode == 0 else None
        except ValueError:
            # It lists some damaged tables in a form that is no JSON.
            table = None
            complaints.append("sfdisk: its list is no JSON")
        if table and table["label"] == "gpt":
            check = subprocess.run(["sgdisk", "-v", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
            if "No problems found" not in check.stdout:
                complaints.append("sgdisk: " + check.stdout.strip()[:300])
        return complaints, table
    if sector == 512:
        return ask(image)
    device = run(["losetup", "--show", "-f", "-r", "--sector-size", str(sector), image]).strip()
    try:
        return ask(device)
    finally:
        run(["losetup", "-d", device])


def partitions(table, sector):
    """{number: (start, length in bytes, what must not change)}, without the extended ones."""
    out = {}
    for part in table.get("partitions", []):
        number = int(re.search(r"(\d+)$", part["node"]).group(1))
        if table["label"] == "dos" and part["type"] in ("5", "f", "85"):
            continue
        same = {key: part.get(key) for key in ("type", "uuid", "name", "attrs", "bootable")}
        if part["size"]:
            out[number] = (part.get("start", 0) * sector, part["size"] * sector, same)
    return out


def compare(before, after, sector, was, now):
    """Returns (class, text) for a difference between two disks' partitions, or None."""
    if was["label"] != now["label"] or was.get("id") != now.get("id"):
        return "table", "label or identity: %s %s -> %s %s" % (was["label"], was.get("id"), now["label"], now.get("id"))
    old, new = partitions(was, sector), partitions(now, sector)
    if old.keys() != new.keys() or any(old[n][2] != new[n][2] for n in old):
        return "table", "partitions: " + ", ".join("%d %s -> %s" % (n, old.get(n), new.get(n)) for n in sorted(old.keys() | new.keys())
                                                   if n not in old or n not in new or old[n][2] != new[n][2])
    for number, (start, length, _) in old.items():
        start_now, length_now, _ = new[number]
        a, b = before[start:start + length], after[start_now:start_now + length_now]
        if a[:len(b)] == b and (len(a) == len(b) or not any(a[len(b):])):
            continue
        try:
            source, made = Fs(a), Fs(b)
        except (Oddity, struct.error):
            # A swap area is its header.
            if a[4086:4096] == b"SWAPSPACE2" and a[:4096] == b[:4096] and len(a) == len(b) and not any(b[4096:]):
                continue
            return "contents", "partition %d: %d bytes at %d, now %d at %d, differ" % (number, length, start, length_now, start_now)
        with tempfile.NamedTemporaryFile(prefix="mutate-tables-") as part:
            part.write(b)
            part.flush()
            verdict, complaints = mutate.e2fsck(part.name)
        if verdict != 0:
            return "contents", "partition %d: e2fsck: %s" % (number, complaints[:3])
        differing = compare_trees(source.tree(), made.tree())
        if differing:
            return "contents", "partition %d: %s" % (number, differing[:3])
    return None


def judge(program, image, out, sector):
    """Returns (class or None, text) for one damaged disk."""
    with open(image, "rb") as f:
        before = f.read()
    folder = os.path.dirname(out)
    there = set(os.listdir(folder))
    code, said, memory, seconds = mutate.capture(program, image, out, seconds=SECONDS)
    try:
        with open(image, "rb") as f:
            if f.read() != before:
                return "crash", "the input was changed"
        if code not in (0, 3) or "panicked" in said or memory > MEMORY:
            return "crash", "exit %s, %d MiB: %s" % (code, memory >> 20, said.strip()[-400:])
        new = set(os.listdir(folder)) - there
        if new - {os.path.basename(out), os.path.basename(out) + ".bmap"} or (code == 3 and new):
            return "crash", "exit %s leaves %s" % (code, sorted(new))
        lines = [line for line in said.splitlines() if line.startswith("pishrink: ")]
        complaints, was = accepted(image, sector)
        if code == 3:
            if len(lines) != 1:
                return "crash", "refused with %d error lines: %s" % (len(lines), said.strip()[-300:])
            return (None if complaints or not was else "strict"), "refused: " + lines[0]
        with open(out, "rb") as f:
            after = f.read()
        if "no partition table" in said:
            return (None if after == before else "contents"), "no table"
        complaints_now, now = accepted(out, sector)
        if not complaints and complaints_now:
            return "table", "; ".join(complaints_now)
        if was is None or now is None:
            return ("table" if was or complaints_now == [] else None), "no table to sfdisk: %s" % (complaints_now or complaints)
        if was["label"] == "dos" and sector > 512:
            # For us an MBR counts in 512 bytes, whatever it lies on.
            return None, "captured as an MBR of 512-byte sectors"
        if any(part.get("start", 0) == 0 for part in was.get("partitions", [])):
            complaints.append("sfdisk: lists entries that start at sector 0")
        if was["label"] == "dos" and now["label"] == "gpt":
            complaints.append("sfdisk: it takes the GPT for damaged and sees only its guard")
        # Where the tools see damage, they may well see other partitions than the kernel and we do.
        found = compare(before, after, sector, was, now)
        if found and complaints:
            return None, "captured, though the tools complain: %s" % complaints[0][:60]
        return found or (None, "captured")
    finally:
        for path in (out, out + ".bmap"):
            if os.path.exists(path):
                os.unlink(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--bases", help="only these: " + " ".join(SECTOR))
    parser.add_argument("--work", default="/tmp/pishrink-mutate-tables")
    parser.add_argument("--replay", nargs="+", metavar="FILE")
    args = parser.parse_args()
    program = judge_matrix.find_program()
    with tempfile.TemporaryDirectory(prefix="mutate-tables-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as fast:
        image, out = os.path.join(fast, "in.img"), os.path.join(fast, "out.img")
        if args.replay:
            bad = 0
            for path in args.replay:
                run(["zstd", "-q", "-d", "-f", path, "-o", image])
                verdict, text = judge(program, image, out, 4096 if "gpt4k" in os.path.basename(path) else 512)
                print("%-9s %s: %s" % (verdict or "ok", os.path.basename(path), text[:300]))
                bad += verdict in BAD
            return 1 if bad else 0
        return campaign(args, program, image, out)


def campaign(args, program, image, out):
    bases = args.bases.split(",") if args.bases else list(SECTOR)
    make_bases(os.path.join(args.work, "bases"))
    for name in bases:
        shutil.copyfile(os.path.join(args.work, "bases", name + ".img"), image)
        verdict, text = judge(program, image, out, SECTOR[name])
        if verdict or text != "captured":
            print("base %s is not even captured undamaged: %s %s" % (name, verdict, text))
            return 1
    began, number = time.monotonic(), args.first
    totals, strict = collections.Counter(), collections.defaultdict(list)
    while (time.monotonic() - began < args.minutes * 60) if args.minutes else number < args.first + args.count:
        rng = random.Random("%s/%d" % (args.seed, number))
        name = rng.choice(bases)
        with open(os.path.join(args.work, "bases", name + ".img"), "rb") as f:
            buf = bytearray(f.read())
        did = Damage(buf, name, rng).some()
        with open(image, "wb") as f:
            f.write(buf)
        verdict, text = judge(program, image, out, SECTOR[name])
        totals[verdict or text.split(":")[0]] += 1
        if verdict == "strict":
            strict[re.sub(r"\d+", "N", text)[:110]].append((number, name, did))
        if verdict in BAD:
            print("%s %d on %s: %s\n    %s" % (verdict.upper(), number, name, "; ".join(did), text[:500]), flush=True)
            found = os.path.join(args.work, "found")
            os.makedirs(found, exist_ok=True)
            run(["zstd", "-q", "-f", "-9", image, "-o", os.path.join(found, "%s-%s-%s-%d.img.zst" % (verdict, name, args.seed, number))])
        number += 1
    for text, cases in sorted(strict.items(), key=lambda item: -len(item[1])):
        print("strict %4d  %s | e.g. %d on %s: %s" % (len(cases), text, cases[0][0], cases[0][1], "; ".join(cases[0][2])[:120]))
    spent = time.monotonic() - began
    print("%d mutations in %.0f s: %s" % (sum(totals.values()), spent, ", ".join("%d %s" % (n, k) for k, n in totals.most_common())))
    return 1 if any(totals[kind] for kind in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
