"""Running the tools that make and judge filesystems: mounts, loop devices, e2fsck, hashes."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile


NEEDED = ("mke2fs", "e2fsck", "resize2fs", "tune2fs", "debugfs", "mount", "losetup")
MIB = 1 << 20


class ToolFailed(Exception):
    pass


def require_tools():
    """A judge without its oracles must fail, not skip."""
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        sys.exit("missing tools: %s (apt-get install e2fsprogs mount)" % " ".join(missing))
    if os.geteuid() != 0:
        sys.exit("must be run as root: filesystems are filled by the kernel through loop mounts")


def run(command, ok=(0,), timeout=300, **keys):
    """Runs a tool; returns its output (both streams), raises ToolFailed on another exit code."""
    env = dict(os.environ, MKE2FS_SYNC="0", E2FSPROGS_FAKE_TIME="", LC_ALL="C")
    del env["E2FSPROGS_FAKE_TIME"]
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=timeout, env=env, **keys)
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode not in ok:
        raise ToolFailed("%s: exit %d\n%s" % (" ".join(map(str, command)), done.returncode, text[-1500:]))
    return text


def fsck(image, journal=None):
    """Returns None if `e2fsck -fn` finds nothing, else what it said."""
    command = ["e2fsck", "-fn"] + (["-j", journal] if journal else []) + [image]
    try:
        run(command)
        return None
    except ToolFailed as error:
        return str(error)


@contextlib.contextmanager
def loop(path, readonly=False):
    device = run(["losetup", "--show", "-f"] + (["-r"] if readonly else []) + [path]).strip()
    try:
        yield device
    finally:
        run(["losetup", "-d", device])


@contextlib.contextmanager
def mounted(image, options="", kind="ext4"):
    """Mounts an image and yields the folder."""
    folder = tempfile.mkdtemp(prefix="matrix-mnt-")
    try:
        run(["mount", "-t", kind, "-o", ",".join(filter(None, ["loop", options])), image, folder])
        try:
            yield folder
        finally:
            for _ in range(5):
                if subprocess.run(["umount", folder], stderr=subprocess.DEVNULL).returncode == 0:
                    break
                subprocess.run(["sleep", "0.3"])
            else:
                run(["umount", "-l", folder])
                raise ToolFailed("umount of %s only worked lazily" % image)
    finally:
        os.rmdir(folder)


def copy_sparse(source, target):
    run(["cp", "--sparse=always", "--reflink=auto", source, target])


def sha256_sparse(path):
    """SHA-256 over data ranges and their places: holes are not read, a hole and zeros differ only there."""
    sha = hashlib.sha256()
    with open(path, "rb", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        sha.update(b"%d;" % size)
        zero, at = bytes(MIB), 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            while at < end:
                # Aligned pieces, zeros left out: sparseness itself does not count.
                chunk = os.pread(f.fileno(), min(end - at, MIB - at % MIB), at)
                if chunk != zero[:len(chunk)]:
                    for k in range(0, len(chunk), 4096):
                        part = chunk[k:k + 4096]
                        if part.count(0) != len(part):
                            sha.update(b"%d:" % (at + k))
                            sha.update(part)
                at += len(chunk)
    return sha.hexdigest()
