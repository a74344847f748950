#!/usr/bin/env python3
"""Runs the recipes of docs/backups.md with the real restic, borg and rclone.

    proofs/recipes.py [--dir DIR] [--program PATH]

Makes a card, backs it up, lives a week on it, backs it up again; what each store gives back has to be the image that went
in, byte for byte, and has to flash to a larger card and, shrunk, to a smaller one, on which e2fsck finds nothing. Prints what the
second backup cost. A failed capture must be seen. Needs root, restic, borgbackup, rclone and e2fsprogs.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile

from lib.tools import MIB, fsck, mounted, run, sha256_sparse

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
CARD, START = 900 * MIB, 4 * MIB
CAPTURE = '"$PISHRINK" capture card.img - --no-shrink --format raw --quiet'
BORG = "--chunker-params buzhash,12,20,16,4095"


def shell(command, check=True, **more):
    """Runs a line as a user's shell would; a failure anywhere in a pipe counts."""
    done = subprocess.run(["bash", "-c", "set -o pipefail; " + command], capture_output=True, text=True, check=False, **more)
    if check and done.returncode:
        sys.exit(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def write_files(folder, seed, count):
    rng = random.Random(seed)
    os.makedirs(folder, exist_ok=True)
    for number in range(count):
        with open(os.path.join(folder, f"{seed}-{number}"), "wb") as file:
            file.write(rng.randbytes(rng.randrange(1, 2 * MIB)))


def make_card(path):
    with open(path, "wb") as file:
        file.truncate(CARD)
    shell(f"echo start={START // 512},type=83 | sfdisk -q {path}")
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "rootfs", "-E", f"offset={START}", path, f"{(CARD - START) // MIB}M"])


def live(path, seed, count):
    with mounted(path, f"offset={START}") as folder:
        write_files(os.path.join(folder, "home"), seed, count)
        for name in sorted(os.listdir(os.path.join(folder, "home")))[:: 9]:
            os.unlink(os.path.join(folder, "home", name))


def size_of(folder):
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def judge(card):
    if found := fsck(f"{card}?offset={START}"):
        sys.exit(f"{card}: {found}")
    os.unlink(card)


def flashes(image):
    """The image, from a pipe, goes to a larger card, and shrunk to a smaller one."""
    shell(f'cat {image} | "$PISHRINK" flash - larger.card --card-size 1200MB --yes --quiet')
    shell(f'"$PISHRINK" capture {image} small.img.zst --quiet && "$PISHRINK" flash small.img.zst smaller.card --card-size 600MB --yes --quiet')
    for card in ("larger.card", "smaller.card"):
        judge(card)
    for name in ("small.img.zst", "small.img.zst.bmap"):
        os.unlink(name)


STORES = {
    "restic": {
        "init": "restic init --quiet",
        "store": CAPTURE + " | restic backup --quiet --stdin --stdin-filename octopi.img --host printer1",
        "load": "restic dump latest octopi.img --host printer1 > back.img",
        "check": "restic check --quiet --read-data",
        "undo": "restic forget --quiet latest --host printer1",
    },
    "borg": {
        "init": "borg init --encryption=repokey store",
        "store": CAPTURE + f" | borg create {BORG} --stdin-name octopi.img store::printer1-$WEEK -",
        "load": "borg extract --stdout store::printer1-$WEEK octopi.img > back.img",
        "check": "borg check --verify-data store",
        "undo": None,
    },
}


def prove(name, recipe):
    shutil.rmtree("store", ignore_errors=True)
    shell(recipe["init"])
    make_card("card.img")
    costs, before = [], 0
    for week in range(2):
        os.environ["WEEK"] = str(week)
        live("card.img", week, 60 if week == 0 else 12)
        shell(recipe["store"])
        shell(CAPTURE + " > sent.img")
        shell(recipe["load"])
        if sha256_sparse("sent.img") != sha256_sparse("back.img"):
            sys.exit(f"{name}: week {week} came back differently")
        costs.append(size_of("store") - before)
        before += costs[-1]
        flashes("back.img")
    shell(recipe["check"])
    print(f"{name}: {costs[0] / 1e6:.0f} MB, then {costs[1] / 1e6:.0f} MB for a week", flush=True)
    if costs[1] > costs[0] // 2:
        sys.exit(f"{name}: a week costs as much as a card")
    os.environ["WEEK"] = "2"
    failed = shell(recipe["store"].replace("card.img", "no-such-card.img"), check=False)
    if failed.returncode == 0:
        sys.exit(f"{name}: a failed capture goes unseen")
    if recipe["undo"]:
        shell(recipe["undo"], check=False)


def prove_rclone():
    shell('"$PISHRINK" capture card.img octopi.img.zst --quiet')
    shell("rclone copy octopi.img.zst cloud:printers/ && rclone cat cloud:printers/octopi.img.zst | "
          '"$PISHRINK" flash - larger.card --card-size 1200MB --yes --quiet')
    judge("larger.card")
    print("rclone: back on a card", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.path.join(ROOT, "target/release/pishrink"))
    parser.add_argument("--dir")
    args = parser.parse_args()
    for tool in ("restic", "borg", "rclone"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed")
    with tempfile.TemporaryDirectory(prefix="recipes-", dir=args.dir) as work:
        os.environ.update(
            PISHRINK=os.path.abspath(args.program), RESTIC_REPOSITORY=os.path.join(work, "store"), RESTIC_PASSWORD="of-this-proof",
            BORG_PASSPHRASE="of-this-proof", BORG_BASE_DIR=os.path.join(work, "borg"), RESTIC_CACHE_DIR=os.path.join(work, "cache"),
            RCLONE_CONFIG_CLOUD_TYPE="alias", RCLONE_CONFIG_CLOUD_REMOTE=os.path.join(work, "cloud"), RCLONE_CONFIG=os.path.join(work, "rclone.conf"))
        os.chdir(work)
        for name, recipe in STORES.items():
            prove(name, recipe)
        prove_rclone()
        os.chdir("/")


if __name__ == "__main__":
    main()
