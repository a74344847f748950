"""Lists everything that can be seen of a mounted tree, one line an inode name, for comparison.

    python3 manifest.py FOLDER            the list on stdout
    python3 manifest.py --diff A B        what differs, exit status 1 if anything does

A line is `path<TAB>field=value ...` with bytes outside printable ASCII escaped.  Fields: type,
mode, owner, times (mtime and ctime in ns), links, size, SHA-256 of the contents, the map of written and
unwritten extents (also past the end of the file), symlink target, device number, inode flags,
project id, extended attributes (sorted), and for a name among several links the first of them.
Left out, because moving blocks may change them: inode numbers, allocated blocks, directory
sizes, access times.
"""

import array
import fcntl
import hashlib
import os
import stat
import struct
import sys

from lib.fsfill import FIEMAP_EXTENT_INLINE, FIEMAP_EXTENT_UNWRITTEN, FS_IOC_FSGETXATTR, FS_IOC_GETFLAGS, fiemap

# Everything but EXTENTS, INDEX and INLINE_DATA, which say how things are stored.
SHOWN_FLAGS = 0xFFFFFFFF & ~(0x80000 | 0x1000 | 0x10000000)


def escape(raw):
    return "".join(chr(b) if 32 < b < 127 and b != 0x5C else "\\x%02x" % b for b in raw)


def contents(fd, size):
    sha, zeros, at = hashlib.sha256(), bytes(1 << 20), 0
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            data = size
        # A hole of gigabytes is hashed as its length, not as its zeros.
        if min(data, size) > at:
            sha.update(b"hole %d" % (min(data, size) - at) if data - at > (64 << 20) else zeros * ((data - at) >> 20) + zeros[:(data - at) & 0xFFFFF])
        if data >= size:
            break
        at = min(os.lseek(fd, data, os.SEEK_HOLE), size)
        while data < at:
            chunk = os.pread(fd, min(at - data, 1 << 20), data)
            if not chunk:
                raise OSError("short read at %d" % data)
            sha.update(chunk)
            data += len(chunk)
    return sha.hexdigest()[:40]


def extent_map(fd):
    """The file's own view of its blocks: merged (start, end, unwritten), hashed."""
    merged = []
    for logical, _, length, flags in fiemap(fd):
        kind = 2 if flags & FIEMAP_EXTENT_INLINE else 1 if flags & FIEMAP_EXTENT_UNWRITTEN else 0
        if kind == 2:
            return "inline"
        if merged and merged[-1][1] == logical and merged[-1][2] == kind:
            merged[-1][1] = logical + length
        else:
            merged.append([logical, logical + length, kind])
    return "%d:%s" % (len(merged), hashlib.sha256(repr(merged).encode()).hexdigest()[:12])


def describe(path, info, seen):
    mode = info.st_mode
    fields = ["type=%o" % stat.S_IFMT(mode), "mode=%o" % stat.S_IMODE(mode), "owner=%d:%d" % (info.st_uid, info.st_gid),
              "mtime=%d" % info.st_mtime_ns, "ctime=%d" % info.st_ctime_ns]
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        if stat.S_ISDIR(mode) or info.st_ino not in seen:
            more = []
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME)
            try:
                if stat.S_ISREG(mode):
                    more += ["size=%d" % info.st_size, "sha256=" + contents(fd, info.st_size), "map=" + extent_map(fd)]
                word = array.array("L", [0])
                fcntl.ioctl(fd, FS_IOC_GETFLAGS, word, True)
                more.append("flags=%x" % (word[0] & SHOWN_FLAGS))
                wide = bytearray(28)
                try:
                    fcntl.ioctl(fd, FS_IOC_FSGETXATTR, wide, True)
                    project = struct.unpack_from("<I", wide, 12)[0]
                    if project:
                        more.append("project=%d" % project)
                except OSError:
                    pass
            finally:
                os.close(fd)
            if stat.S_ISREG(mode):
                seen[info.st_ino] = more
        else:
            more = seen[info.st_ino]
        fields += more
    if stat.S_ISDIR(mode):
        fields.append("nlink=%d" % info.st_nlink)
    elif stat.S_ISLNK(mode):
        fields.append("target=" + escape(os.readlink(path)))
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        fields.append("device=%d:%d" % (os.major(info.st_rdev), os.minor(info.st_rdev)))
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        fields.append("xattr.%s=%s" % (escape(os.fsencode(name)), os.getxattr(path, name, follow_symlinks=False).hex()))
    return fields


def lines(top):
    """Yields the manifest of the tree mounted at `top`."""
    top = os.fsencode(top)
    paths = [top]
    for folder, names, files in os.walk(top):
        paths.extend(os.path.join(folder, name) for name in names + files)
    paths.sort()
    first, seen = {}, {}
    for path in paths:
        info = os.lstat(path)
        shown = escape(path[len(top):] or b"/")
        fields = describe(path, info, seen)
        if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
            fields += ["links=%d" % info.st_nlink, "first=" + first.setdefault(info.st_ino, shown)]
        yield shown + "\t" + " ".join(fields)


def parse(rows):
    out = {}
    for row in rows:
        name, _, fields = row.rstrip("\n").partition("\t")
        out[name] = dict(field.split("=", 1) for field in fields.split(" "))
    return out


def compare(rows_a, rows_b, limit=8):
    """Returns a list of findings, empty if the two manifests are equal."""
    rows_a, rows_b = list(rows_a), list(rows_b)
    if rows_a == rows_b:
        return []
    a, b, found, total = parse(rows_a), parse(rows_b), [], 0
    for name in sorted(a.keys() | b.keys()):
        if name not in b or name not in a:
            total += 1
            found.append("only in %s: %s" % ("A" if name in a else "B", name))
            continue
        for field in sorted(a[name].keys() | b[name].keys()):
            was, now = a[name].get(field, "(none)"), b[name].get(field, "(none)")
            if was != now:
                total += 1
                found.append("%s: %s %.120s -> %.120s" % (field, name, was, now))
    if not found:
        found = ["the same names in another order or twice"]
    return found[:limit] + (["… %d differences in all" % total] if total > limit else [])


def main():
    if sys.argv[1:2] == ["--diff"]:
        with open(sys.argv[2]) as a, open(sys.argv[3]) as b:
            found = compare(a, b)
        print("\n".join(found))
        sys.exit(1 if found else 0)
    for line in lines(sys.argv[1]):
        print(line)


if __name__ == "__main__":
    main()
