"""A card that misbehaves: one file, `card`, in a FUSE mount. Speaks the kernel's protocol itself.

usage: badcard.py FOLDER BACKING FAULT[=VALUE]...

flip-once=AT    the byte at AT is written with a flipped bit, the first time
flip=AT         ... every time
bad-write=AT    writes that touch AT fail
bad-read=AT     reads that touch AT fail
bad-write-once=AT, bad-read-once=AT  ... the first time only
bad-sync        it cannot write out what it has taken
short           every read gives half of what it could
wrap=LEN        addresses wrap at LEN
gone=BYTES      after so many written bytes every request fails
stall=AT,SECONDS  the write that reaches AT takes so long, once
"""

import ctypes
import errno
import os
import stat
import struct
import sys
import time

INIT, LOOKUP, FORGET, GETATTR, SETATTR = 26, 1, 2, 3, 4
OPEN, READ, WRITE, STATFS, RELEASE = 14, 15, 16, 17, 18
FSYNC, FLUSH, OPENDIR, RELEASEDIR, ACCESS = 20, 25, 27, 29, 34
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42
ROOT, CARD = 1, 2
DIRECT_IO = 1


class Gone(Exception):
    pass


class Card:
    def __init__(self, path, faults):
        self.file = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.faults = faults
        self.written = 0

    def check(self):
        if "gone" in self.faults and self.written > int(self.faults["gone"]):
            raise Gone()

    def parts(self, offset, count):
        """Where on the medium the bytes lie."""
        wrap = int(self.faults.get("wrap", 1 << 62))
        while count:
            place = offset % wrap
            step = min(count, wrap - place)
            yield place, step
            offset, count = offset + step, count - step

    def touches(self, fault, offset, count):
        return fault in self.faults and offset <= int(self.faults[fault]) < offset + count

    def fail(self, fault, offset, count):
        once = f"{fault}-once"
        if self.touches(fault, offset, count) or self.touches(once, offset, count):
            self.faults.pop(once, None)
            raise OSError(errno.EIO, "injected")

    def read(self, offset, count):
        self.check()
        self.fail("bad-read", offset, count)
        count = max(0, min(count, self.size - offset))
        if "short" in self.faults and count > 8192:
            count = count // 2 // 4096 * 4096
        return b"".join(os.pread(self.file, step, place) for place, step in self.parts(offset, count))

    def write(self, offset, data):
        self.check()
        self.fail("bad-write", offset, len(data))
        if "stall" in self.faults:
            place, seconds = self.faults["stall"].split(",")
            if offset <= int(place) < offset + len(data):
                del self.faults["stall"]
                time.sleep(float(seconds))
        data = bytearray(data)
        for fault in ("flip", "flip-once"):
            if self.touches(fault, offset, len(data)):
                data[int(self.faults[fault]) - offset] ^= 4
                if fault == "flip-once":
                    del self.faults[fault]
        done = 0
        for place, step in self.parts(offset, len(data)):
            os.pwrite(self.file, data[done : done + step], place)
            done += step
        self.written += len(data)


def attributes(node, size):
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
    return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(card, opcode, node, body):
    """Returns the reply's body, or None where the kernel wants none."""
    if opcode == INIT:
        return struct.pack("<4I2H2I2HI7I", 7, 31, 1 << 20, 0, 12, 9, 1 << 20, 1, 256, 0, 0, *[0] * 7)
    if opcode == LOOKUP:
        if body.rstrip(b"\0") != b"card":
            raise OSError(errno.ENOENT, "no such file")
        return struct.pack("<4Q2I", CARD, 0, 3600, 3600, 0, 0) + attributes(CARD, card.size)
    if opcode in (GETATTR, SETATTR):
        return struct.pack("<Q2I", 3600, 0, 0) + attributes(node, card.size)
    if opcode in (OPEN, OPENDIR):
        return struct.pack("<Q2I", 1, DIRECT_IO, 0)
    if opcode == READ:
        _, offset, count = struct.unpack_from("<2QI", body)
        return card.read(offset, count)
    if opcode == WRITE:
        _, offset, count = struct.unpack_from("<2QI", body)
        card.write(offset, body[40 : 40 + count])
        return struct.pack("<2I", count, 0)
    if opcode == FSYNC:
        card.check()
        if "bad-sync" in card.faults:
            raise OSError(errno.EIO, "injected")
        return b""
    if opcode == STATFS:
        return struct.pack("<5Q4I6I", 1 << 30, 1 << 30, 1 << 30, 1, 1, 4096, 255, 4096, 0, *[0] * 6)
    if opcode in (FLUSH, RELEASE, RELEASEDIR, ACCESS, DESTROY):
        return b""
    if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
        return None
    raise OSError(errno.ENOSYS, "not here")


def main():
    folder, backing, *faults = sys.argv[1:]
    card = Card(backing, dict((fault.split("=") + [""])[:2] for fault in faults))
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,max_read=1048576".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"badcard", folder.encode(), b"fuse", 6, options) != 0:
        sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    while True:
        try:
            request = os.read(fuse, (1 << 20) + 65536)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            return  # Unmounted.
        _, opcode, unique, node = struct.unpack_from("<2I2Q", request)
        error, body = 0, b""
        try:
            body = answer(card, opcode, node, request[40:])
        except Gone:
            error = errno.ENODEV
        except OSError as failure:
            error = failure.errno
        if body is not None:
            body = b"" if error else body
            try:
                os.write(fuse, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
            except OSError:
                pass  # Nobody waits for it any more.


main()
