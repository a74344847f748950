#!/usr/bin/env python3
"""Killed, stopped, starved: what is left after a run that could not finish?

    proofs/kill_matrix.py [--rounds N] [--seed S] [--program PATH] [--dir DIR]

- SIGKILL at random moments of capture (raw, .xz, .zst, raw with --resume), flash and expand: no
  half-done file under its final name, the source unchanged, the next run makes what it would have made
- output that is closed: `capture X - | head`, `inspect | head`, `--json | true`
- a full disk at every stage, from no room at all to nearly enough: exit 1, one line, nothing left
- the output's disk, and the source, going away in the middle: exit 1, one line
- Ctrl-C twice while the source does not answer: at once, nothing left

Needs root, loop devices, e2fsprogs, sfdisk, nbdkit and nbdfuse. Exit 0: all as it should be.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIB = 1 << 20
PART = MIB


def run(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"kill-matrix: {words}: {done.stdout}{done.stderr}")
    return done.stdout


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Matrix:
    def __init__(self, options):
        self.program = os.path.abspath(options.program)
        self.rounds = options.rounds
        self.dice = random.Random(options.seed)
        self.dir = options.dir
        self.failures = 0
        self.checks = 0
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        self.card = self.path("card.img")
        self.make_card(self.card, 96, 70)
        self.card_sum = digest(self.card)

    def path(self, name):
        return os.path.join(self.dir, name)

    def make_card(self, path, size, full):
        tree = self.path("tree")
        os.makedirs(tree, exist_ok=True)
        for number in range(full):
            with open(f"{tree}/{number}", "wb") as file:
                # Half of it noise, so that packing takes time, half of it text.
                file.write(self.dice.randbytes(MIB // 2) + b"all work and no play\n" * 25000)
        with open(path, "wb") as file:
            file.truncate((size + 32) * MIB)
        root = self.path("root.part")
        with open(root, "wb") as file:
            file.truncate(size * MIB)
        run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, root)
        shutil.rmtree(tree)
        run("sfdisk", "-q", "--no-tell-kernel", path,
            input=f"label: dos\n{PART // 512},{size * MIB // 512},83\n")
        with open(root, "rb") as source, open(path, "r+b") as file:
            file.seek(PART)
            shutil.copyfileobj(source, file, MIB)
        os.remove(root)

    def expect(self, what, holds, *details):
        self.checks += 1
        if not holds:
            self.failures += 1
            print(f"FAILED  {what}: {details}", flush=True)

    def start(self, *words):
        words = [self.program, *map(str, words)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(self, *words):
        words = [self.program, *map(str, words)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300)

    def one_line(self, what, text):
        lines = [line for line in text.splitlines() if line.startswith("pishrink: ")]
        self.expect(f"{what}: one line", len(lines) == 1 and "panic" not in text, text)

    def duration(self, *words):
        begun = time.monotonic()
        done = self.finish(*words)
        self.expect(f"{words} works", done.returncode == 0, done.stderr)
        return time.monotonic() - begun

    def killed(self, seconds, *words):
        """Kills a run at a random moment. True if it was still running."""
        child = self.start(*words)
        time.sleep(self.dice.random() * seconds * 1.05)
        child.kill()
        child.communicate()
        return child.returncode == -signal.SIGKILL

    def captures(self):
        out = self.path("out")
        for name, extra in [("x.img", []), ("x.img.xz", ["--level", "1"]), ("x.img.zst", []),
                            ("x.img", ["--resume"])]:
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)
            image = os.path.join(out, name)
            words = ["capture", *extra, self.card, image]
            seconds = self.duration(*words)
            reference = digest(image)
            kills = 0
            for _ in range(self.rounds):
                for left in os.listdir(out):
                    os.remove(os.path.join(out, left))
                if not self.killed(seconds, *words):
                    continue
                kills += 1
                left = sorted(os.listdir(out))
                if name in left:
                    # Killed between the image's rename and the end.
                    self.expect(f"{words}: complete under its name", digest(image) == reference)
                    continue
                known = {f"{name}{end}" for end in (".partial", ".bmap.partial", ".partial.mapfile",
                                                    ".partial.mapfile.partial")}
                self.expect(f"{words}: only partial files", set(left) <= known, left)
                again = self.finish(*words)
                self.expect(f"{words}: works again", again.returncode == 0, again.stderr)
                if f"{name}.partial" in left and not extra:
                    self.expect("says so", "is replaced" in again.stderr, again.stderr)
                self.expect(f"{words}: the same image", digest(image) == reference)
                stay = [end for end in os.listdir(out) if "partial" in end]
                self.expect(f"{words}: nothing stays", stay == [], stay)
            self.expect("the source is as it was", digest(self.card) == self.card_sum)
            print(f"{name} {' '.join(extra)}: {kills} kills", flush=True)

    def flashes(self):
        image, card = self.path("flash.img"), self.path("target.img")
        self.finish("capture", self.card, image)
        size = 200 * MIB
        with open(image, "rb") as file:
            whole = file.read()
        old = b"old!" * 1024
        def fresh():
            with open(card, "wb") as file:
                file.truncate(size)
                file.write(old)
        fresh()
        words = ["flash", image, card, "--yes", "--overwrite", "--expand", "none"]
        seconds = self.duration(*words)
        outcomes = [0, 0, 0]
        for _ in range(self.rounds):
            fresh()
            self.killed(seconds, *words)
            with open(card, "rb") as file:
                first = file.read(4096)
                file.seek(0)
                if first == old:
                    outcomes[0] += 1
                elif first == bytes(4096):
                    outcomes[1] += 1
                else:
                    outcomes[2] += 1
                    self.expect("published only when complete", file.read(len(whole)) == whole)
        print(f"flash: old, blank, complete: {outcomes}", flush=True)

    def expands(self):
        card = self.path("expand.img")
        image = self.path("flash.img")
        if not os.path.exists(image):
            self.finish("capture", self.card, image)
        def fresh():
            shutil.copyfile(image, card)
            os.truncate(card, 4096 * MIB)
        fresh()
        words = ["expand", card, "--yes"]
        seconds = self.duration(*words)
        sizes = set()
        for round in range(self.rounds):
            fresh()
            self.killed(seconds, *words)
            root = self.path("root.part")
            run("dd", f"if={card}", f"of={root}", "bs=1M", "skip=1", "conv=sparse", "status=none")
            if round % 2:
                # Nobody comes before the kernel.
                folder = self.path("mounted")
                os.makedirs(folder, exist_ok=True)
                run("mount", "-o", "loop", root, folder)
                with open(os.path.join(folder, "new"), "wb") as file:
                    file.write(self.dice.randbytes(MIB))
                run("umount", folder)
            else:
                replay = subprocess.run(["e2fsck", "-p", "-E", "journal_only", root],
                                        capture_output=True, text=True)
                if "journal has data" in replay.stdout:
                    # For a moment both answers to e2fsck's question are right.
                    replay = subprocess.run(["e2fsck", "-fy", root], capture_output=True, text=True)
                self.expect("expand: the journal replays", replay.returncode <= 1, replay.stdout)
            judged = subprocess.run(["e2fsck", "-fn", root], capture_output=True, text=True)
            self.expect("expand: e2fsck -fn", judged.returncode == 0, judged.stdout)
            told = run("dumpe2fs", "-h", root)
            line = next(line for line in told.splitlines() if line.startswith("Block count"))
            sizes.add(line.split()[-1])
            again = self.finish(*words)
            self.expect("expand: goes on", again.returncode == 0, again.stderr)
        self.expect("expand: two sizes at most", len(sizes) <= 2, sizes)
        print(f"expand: sizes met: {sorted(sizes)}", flush=True)
        os.remove(card)
        os.remove(self.path("root.part"))

    def pipes(self):
        cases = [
            (f"{self.program} capture {self.card} - | head -c 1M > /dev/null", (1,), 1),
            (f"{self.program} capture --format xz {self.card} - | head -c 10 > /dev/null", (1,), 1),
            (f"{self.program} inspect {self.card} | head -1 > /dev/null", (0,), 0),
            (f"{self.program} inspect --json {self.card} | true", (0,), 0),
            (f"{self.program} devices --all | true", (0,), 0),
            (f"{self.program} --help | true", (0,), 0),
            (f"{self.program} capture --dry-run --json {self.card} x.img | true", (0,), 0),
            (f"{self.program} inspect {self.card} 2>&1 >/dev/full | cat", (0,), 0),
        ]
        for script, codes, lines in cases:
            script += "; exit ${PIPESTATUS[0]}"
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
            said = [line for line in done.stderr.splitlines() if line.startswith("pishrink: ")]
            good = done.returncode in codes and len(said) == lines and "panic" not in done.stderr
            self.expect(script, good, done.returncode, done.stderr)
        print("pipes", flush=True)

    def mounted(self, size):
        """A small ext4 filesystem on a loop device: folder and backing file."""
        back, folder = self.path("small.part"), self.path("small")
        with open(back, "wb") as file:
            file.truncate(size)
        os.makedirs(folder, exist_ok=True)
        run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", "64", back)
        run("mount", "-o", "loop", back, folder)
        shutil.rmtree(os.path.join(folder, "lost+found"))
        return folder, back

    def full_disks(self):
        packed = self.path("card.img.xz")
        with open(packed, "wb") as file:
            subprocess.run(["xz", "-1", "-T0", "-c", self.card], stdout=file, check=True)
        cases = [("x.img", self.card, []), ("x.img.xz", self.card, ["--level", "1"]),
                 ("x.img.zst", self.card, []), ("x.img.gz", self.card, ["--no-bmap"]),
                 ("x.img", self.card, ["--resume"]), ("x.img.zst", packed, [])]
        count = 0
        for name, source, extra in cases:
            done = None
            for step in range(1, 30):
                folder, _ = self.mounted(int(0.4 * MIB + step * 7.3 * MIB))
                try:
                    done = self.finish("capture", *extra, source, os.path.join(folder, name))
                    left = os.listdir(folder)
                finally:
                    run("umount", folder)
                if done.returncode == 0:
                    break
                count += 1
                what = f"full disk, {name} {extra} at step {step}"
                self.expect(what, done.returncode == 1, done.returncode, done.stderr)
                self.one_line(what, done.stderr)
                kept = {f"{name}.partial", f"{name}.partial.mapfile"} if extra == ["--resume"] else set()
                self.expect(f"{what}: nothing left", set(left) <= kept, left)
            self.expect(f"{name} fits at last", done.returncode == 0, done.stderr)
        os.remove(packed)
        print(f"full disks: {count}", flush=True)

    def failing(self, back, when, delay=0):
        """A disk on `back` that fails at everything as soon as the file `when` exists."""
        mounted = self.path("failing.img")
        open(mounted, "w").close()
        server = subprocess.Popen(
            ["nbdfuse", mounted, "[", "nbdkit", "--filter=error", "--filter=delay", "file", back,
             f"rdelay={delay}ms", "error=EIO",
             "error-rate=100%", f"error-file={when}", "]"],
            stderr=subprocess.DEVNULL)
        for _ in range(200):
            if os.stat(mounted).st_size == os.stat(back).st_size:
                break
            time.sleep(0.05)
        return server, mounted, run("losetup", "--find", "--show", mounted).strip()

    def end(self, server, mounted, device, when):
        if os.path.exists(when):
            os.remove(when)
        subprocess.run(["losetup", "-d", device])
        subprocess.run(["fusermount3", "-uz", mounted])
        server.wait()

    def gone(self):
        """The disk under the output, then the one under the source, fails from some time on."""
        when = self.path("when")
        back = self.path("back.part")
        for name in ("x.img", "x.img.zst"):
            folder, _ = self.mounted(300 * MIB)
            run("umount", folder)
            os.replace(self.path("small.part"), back)
            server, mounted, device = self.failing(back, when)
            run("mount", device, folder)
            child = self.start("capture", self.card, os.path.join(folder, name))
            time.sleep(0.2)
            open(when, "w").close()
            said = child.communicate(timeout=120)[1]
            subprocess.run(["umount", "-l", folder], check=True)
            self.end(server, mounted, device, when)
            self.expect(f"output gone, {name}", child.returncode == 1, child.returncode, said)
            self.one_line("output gone", said)
        shutil.copyfile(self.card, back)
        for extra in ([], ["--resume"]):
            server, mounted, device = self.failing(back, when, 20)
            child = self.start("capture", *extra, mounted, self.path("gone.img"))
            while not os.path.exists(self.path("gone.img.partial")):
                time.sleep(0.01)
            open(when, "w").close()
            said = child.communicate(timeout=120)[1]
            self.end(server, mounted, device, when)
            self.expect("source gone", child.returncode == 1, child.returncode, said)
            self.one_line("source gone", said)
            left = [name for name in os.listdir(self.dir) if name.startswith("gone.img")]
            if extra:
                done = self.finish("capture", *extra, self.card, self.path("gone.img"))
                self.expect("source back", done.returncode == 0, done.stderr)
            else:
                self.expect("source gone: nothing left", left == [], left)
        os.remove(back)
        print("disks that go away", flush=True)

    def twice(self):
        mounted = self.path("slow.img")
        open(mounted, "w").close()
        server = subprocess.Popen(["nbdfuse", mounted, "[", "nbdkit", "--filter=delay", "file",
                                   self.card, "rdelay=20", "]"], stderr=subprocess.DEVNULL)
        try:
            for _ in range(200):
                if os.stat(mounted).st_size == os.stat(self.card).st_size:
                    break
                time.sleep(0.05)
            folder = self.path("twice")
            os.makedirs(folder, exist_ok=True)
            for source, words in [(mounted, []), (mounted, ["--format", "zst"])]:
                child = self.start("capture", *words, source, os.path.join(folder, "x.img"))
                time.sleep(1)
                child.send_signal(signal.SIGINT)
                time.sleep(0.3)
                begun = time.monotonic()
                child.send_signal(signal.SIGINT)
                # What is in the kernel for a read ends when that ends; all else is at once.
                said = child.stderr.readline()
                while said and not said.startswith("pishrink: "):
                    said = child.stderr.readline()
                took = time.monotonic() - begun
                self.expect("twice: at once", "at once" in said and took < 2, took, said)
                self.expect("twice: nothing left", os.listdir(folder) == [])
                child.communicate(timeout=60)
                self.expect("twice: 130", child.returncode == 130, child.returncode)
        finally:
            subprocess.run(["fusermount3", "-uz", mounted])
            server.terminate()
            server.wait()
        print("stopped twice", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", default=os.path.join(HERE, "target/release/pishrink"))
    parser.add_argument("--dir", default=os.path.join(HERE, "target/kill-matrix"))
    parser.add_argument("--only")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("kill-matrix: run it as root: it mounts file systems")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if not os.path.exists(options.program):
        run("cargo", "build", "--release", cwd=HERE)
    matrix = Matrix(options)
    parts = ["captures", "flashes", "expands", "pipes", "full_disks", "gone", "twice"]
    for part in parts:
        if not options.only or part in options.only.split(","):
            getattr(matrix, part)()
    shutil.rmtree(matrix.dir)
    print(f"kill-matrix: {matrix.checks} checks, {matrix.failures} failed")
    sys.exit(matrix.failures > 0)


main()
