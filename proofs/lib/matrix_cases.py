"""The matrix: one entry per generated filesystem.

A case is a list of steps that proofs/make_matrix.py runs in order:
    ("mkfs", size in MiB, whole or not, [mke2fs arguments])
    ("fill", profile for fsfill, mount options)
    ("run", [command])              {img} stands for the image
    ("debugfs", command, ...)       each must succeed
    ("size", MiB)                   truncates or extends the image file
    ("online", MiB)                 extends it and lets the kernel grow it mounted (offline, and told so, where
                                    CAP_SYS_RESOURCE is missing)
    ("projects",)                   gives some files project ids, with debugfs
    ("share", path, path, ...)      gives the other files the first one's blocks, with debugfs, and switches shared_blocks on
    ("garbage",)                    fills the image with random bytes first
`keep` names a feature that must be kept at full size (used blocks only), `kernel` is False where
the kernel at hand cannot mount it, `quick` puts it into the subset of --quick, `extra` is a list
of files that belong to the image.
The kernel of many a CI machine has no QFMT_V2, so it cannot write to a filesystem with quota or
project: those two are switched on by tune2fs after the fill.
"""

BASE = "ext_attr,resize_inode,dir_index,filetype,sparse_super,large_file"
EXT2 = "none," + BASE
EXT3 = "none,has_journal," + BASE
EXT4 = "none,has_journal,extent,flex_bg,huge_file,dir_nlink,extra_isize," + BASE
# The defaults of mke2fs 1.42, 1.43 to 1.46 (with and without 64bit, as pi-gen has it), 1.47.
E142 = EXT4 + ",uninit_bg"
E143_32 = EXT4 + ",metadata_csum"
E143 = E143_32 + ",64bit"
E147 = E143 + ",metadata_csum_seed,orphan_file"
ERAS = {"142": E142, "143p": E143_32, "143": E143, "147": E147}

# Groups of 8 MiB in every block size, so that small images have several.
GROUP = {1024: [], 2048: ["-g", "4096"], 4096: ["-g", "2048"]}

LIGHT = {"parts": ["links", "symlinks", "xattrs", "acls", "sparse", "fragmented", "deep", "htree", "names", "nodes", "times",
                   "flags", "spread_dirs", "last_inodes", "last_blocks", "again"],
         "htree": 500, "deep_extents": 400, "frag_turns": 40, "xattr_files": 16, "max_inodes": 14000}
BLOCKS = dict(LIGHT, parts=["links", "symlinks", "xattrs", "acls", "sparse", "indirect", "htree", "names", "nodes", "times",
                            "flags", "spread_dirs", "last_inodes", "last_blocks", "again"], extents=False)

# For filesystems with hardly more inodes than the filler wants; the last directories may not fit.
FEW = dict(LIGHT, parts=["links", "symlinks", "acls", "deep", "nodes", "last_inodes", "last_blocks"])


def more(profile, *parts, **keys):
    return dict(profile, more=list(parts), **keys)


def first(profile, *parts, **keys):
    return dict(profile, parts=list(parts) + profile["parts"], **keys)


def mk(bs, features, *args, inode=256):
    return ["-t", "ext4", "-b", str(bs), "-I", str(inode), "-O", features] + GROUP[bs] + list(args)


CASES = {}


def case(name, *steps, quick=False, kernel=True, keep=None, extra=()):
    assert name not in CASES, name
    CASES[name] = {"name": name, "steps": list(steps), "quick": quick, "kernel": kernel, "keep": keep, "extra": list(extra)}


def simple(name, size, args, profile=LIGHT, mount="", **keys):
    case(name, ("mkfs", size, args), ("fill", profile, mount), **keys)


# --- the grid: block size x inode size x era ---------------------------------
for bs in (1024, 2048, 4096):
    for inode in (128, 256):
        for era, features in ERAS.items():
            if inode == 128:
                features = features.replace(",extra_isize", "")
            simple("grid-%dk-i%d-%s" % (bs // 1024, inode, era), 48, mk(bs, features, inode=inode),
                   mount="nodelalloc" if bs != 4096 else "",
                   quick=(bs, inode, era) in ((1024, 256, "142"), (4096, 256, "143"), (1024, 128, "143p"), (4096, 256, "147")))
        simple("ext3-%dk-i%d" % (bs // 1024, inode), 56, ["-t", "ext3", "-b", str(bs), "-I", str(inode), "-O", EXT3] + GROUP[bs],
               profile=BLOCKS, quick=(bs, inode) == (1024, 128))
    simple("ext2-%dk" % (bs // 1024), 56, ["-t", "ext2", "-b", str(bs), "-I", "128", "-O", EXT2] + GROUP[bs],
           profile=BLOCKS, quick=bs == 1024)

# --- plain mke2fs, whatever it is today, and real group sizes ------------------
simple("default-ext4-600m", 600, ["-t", "ext4", "-b", "4096"], more(LIGHT, max_inodes=42000))
simple("default-ext4-small", 40, ["-t", "ext4"])
simple("default-ext4-tiny", 6, ["-t", "ext4"], {"parts": ["links", "symlinks", "names", "nodes"]}, quick=True)
simple("default-ext3", 96, ["-t", "ext3"], BLOCKS)
simple("default-ext2", 96, ["-t", "ext2"], BLOCKS)
simple("pi-1g", 1024, ["-t", "ext4", "-b", "4096", "-I", "256", "-O", E143_32, "-N", "9000"],
       more(LIGHT, end_bytes=12 << 20))
simple("one-group", 8, mk(1024, E143), {"parts": ["links", "symlinks", "xattrs", "names", "nodes"]}, quick=True)

# --- layouts --------------------------------------------------------------------
simple("no-flex", 56, mk(1024, E143 + ",^flex_bg"), quick=True)
simple("no-flex-old", 56, mk(4096, E142 + ",^flex_bg", inode=128))
simple("flex-g4", 56, mk(1024, E143, "-G", "4"))
simple("flex-g2-few-inodes", 56, mk(1024, E143, "-G", "2", "-N", "900"), FEW)
simple("flex-g128", 56, mk(1024, E142, "-G", "128"))
simple("no-resize-inode", 56, mk(1024, E143 + ",^resize_inode"), quick=True)
simple("resize-small", 56, mk(1024, E143, "-E", "resize=120000"))
simple("resize-max", 56, mk(1024, E143, "-E", "resize=4000000"))
simple("resize-4k-big", 96, mk(4096, E143, "-E", "resize=260000000"))
simple("no-sparse-super", 56, mk(1024, E142 + ",^sparse_super,^resize_inode"), quick=True)
simple("tiny-groups", 24, mk(1024, E143, "-g", "512"), more(LIGHT, max_inodes=5000))
simple("tiny-groups-4k", 48, mk(4096, E147, "-g", "256"), keep="meta_bg")  # which mke2fs chooses for it
simple("many-groups-old", 32, mk(1024, E142 + ",^flex_bg", "-g", "1024"))
simple("partial-last", 45, ["-t", "ext4", "-b", "1024", "-O", E143], quick=True)
simple("stride", 56, mk(4096, E143, "-E", "stride=16,stripe_width=32"))
simple("odd-size", 41, mk(1024, E147, "-E", "packed_meta_blocks=1"))
simple("journal-at-end", 56, mk(1024, E143, "-J", "size=4,location=40M"), quick=True)
simple("journal-small", 56, mk(1024, E143, "-J", "size=1"))
simple("journal-big", 96, mk(1024, E142, "-J", "size=32"))
simple("no-journal", 56, mk(1024, E143 + ",^has_journal"), quick=True)
simple("no-journal-old", 56, mk(4096, E142 + ",^has_journal"))
simple("no-csum-no-uninit", 56, mk(1024, EXT4), quick=True)
simple("64bit-no-csum", 56, mk(4096, EXT4 + ",64bit"))
simple("csum-no-extents", 56, mk(1024, E143_32.replace(",extent,", ","), "-E", "resize=100000"), BLOCKS)
simple("inode-512", 56, mk(4096, E143, inode=512))
simple("inode-1024", 40, mk(2048, E147, inode=1024), more(LIGHT, "inline"))
simple("many-inodes", 64, mk(1024, E143, "-i", "1024"), more(LIGHT, max_inodes=65000))
simple("few-inodes", 64, mk(1024, E143, "-N", "600"), FEW)
simple("reserved-none", 48, mk(1024, E143, "-m", "0"))
simple("reserved-half", 48, mk(1024, E143, "-m", "49.5"))
simple("bad-blocks", 56, mk(1024, E143, "-l", "{bad}"))
simple("large-file-only", 48, ["-t", "ext4", "-b", "4096", "-g", "2048", "-O", "none,extent,has_journal,filetype"])
simple("no-filetype", 40, ["-t", "ext2", "-b", "1024", "-O", "none,ext_attr"], BLOCKS)
simple("rev0-like", 24, ["-t", "ext2", "-b", "1024", "-r", "0", "-I", "128"],
       {"parts": ["links", "symlinks", "indirect", "names", "nodes", "spread_dirs", "last_inodes", "last_blocks"], "extents": False,
        "max_inodes": 9000})
case("garbage-below", ("garbage",), ("mkfs", 48, mk(1024, E143, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1")),
     ("fill", dict(LIGHT, parts=["links", "symlinks", "xattrs", "deep", "spread_dirs", "last_blocks", "again"]), "noinit_itable"), quick=True)
case("garbage-uninit", ("garbage",), ("mkfs", 48, mk(4096, E142, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1")),
     ("fill", dict(LIGHT, parts=["links", "symlinks", "xattrs", "deep", "spread_dirs", "again"]), "noinit_itable,nodelalloc"))

# --- directories ---------------------------------------------------------------
DIRS = {"parts": ["htree", "names", "links"], "htree": 20000, "htree_name": 250, "htree_links": True}
simple("htree-20000", 64, mk(1024, E143), more(DIRS, "subdirs", "last_inodes", "last_blocks", max_inodes=9000, end_bytes=3 << 20), mount="nodelalloc")
simple("htree-20000-old", 64, mk(1024, E142, inode=128), more(DIRS, "last_blocks", end_bytes=2 << 20))
simple("htree-4k-inodes", 64, mk(4096, E147), dict(DIRS, htree=12000, htree_name=30, htree_links=False))
simple("large-dir", 96, mk(1024, E143 + ",large_dir"), dict(DIRS, htree=62000, htree_name=254))
simple("no-dir-index", 48, mk(1024, E143 + ",^dir_index"), more(LIGHT, htree=1500), quick=True)
simple("dir-nlink-70000", 256, mk(1024, E143, "-N", "76000"), {"parts": ["subdirs", "links", "last_blocks"], "subdirs": 70000, "end_bytes": 1 << 20})
simple("subdirs-spread", 64, mk(1024, E142), {"parts": ["subdirs", "links", "spread_dirs", "last_inodes", "last_blocks"], "subdirs": 3000, "spread": 100})
case("optimised-dirs", ("mkfs", 64, mk(1024, E143)), ("fill", more(LIGHT, htree=6000, htree_name=120), ""),
     ("run", ["e2fsck", "-fyD", "{img}"]), quick=True)

EA_LINKS = {"parts": ["linked_values", "links", "symlinks", "last_inodes", "last_blocks"], "max_inodes": 6000}

# --- attributes, inline data, quota, flags ---------------------------------------
simple("shared-xattr", 40, mk(1024, E142.replace(",extra_isize", ""), inode=128), first(LIGHT, "shared_xattr", shared_files=1200), quick=True)
simple("shared-xattr-csum", 40, mk(4096, E143.replace(",extra_isize", ""), inode=128), first(LIGHT, "shared_xattr", shared_files=2200))
simple("ea-inode", 48, mk(1024, E143 + ",ea_inode"), first(LIGHT, "big_xattrs"), quick=True)
simple("ea-inode-late", 48, mk(4096, E147 + ",ea_inode"), more(LIGHT, "big_xattrs"))
simple("ea-inode-symlinks", 30, mk(1024, E143.replace(",extra_isize", "") + ",ea_inode", inode=128), first(EA_LINKS, "big_xattrs"), quick=True)
simple("inline-data", 48, mk(1024, E143 + ",inline_data"), first(LIGHT, "inline"), quick=True)
simple("inline-data-late", 48, mk(4096, E147 + ",inline_data"), more(LIGHT, "inline"))
simple("inline-ea-512", 48, mk(2048, E143 + ",inline_data,ea_inode", inode=512), more(LIGHT, "inline", "big_xattrs"))
for name, bs, features, what, profile, quick in (
        ("quota", 1024, E143, "usrquota,grpquota", more(LIGHT, "owners"), True),
        ("quota-prj", 4096, E147, "usrquota,grpquota,prjquota", more(LIGHT, "owners"), False),
        ("quota-first", 1024, E142, "usrquota", first(LIGHT, "owners", owner_files=600), False)):
    case(name, ("mkfs", 48, mk(bs, features)), ("fill", profile, ""),
         *([("run", ["tune2fs", "-O", "project", "{img}"]), ("projects",)] if "prj" in what else []),
         ("run", ["tune2fs", "-Q", what, "{img}"]), ("run?", ["e2fsck", "-fy", "{img}"]), quick=quick)
case("project", ("mkfs", 48, mk(1024, E143)), ("fill", LIGHT, ""), ("run", ["tune2fs", "-O", "project", "{img}"]), ("projects",), ("run?", ["e2fsck", "-fy", "{img}"]))
simple("encrypt-unused", 40, mk(4096, E143 + ",encrypt"))
simple("encrypt", 48, mk(4096, E143 + ",encrypt"), more(LIGHT, "encrypted"), quick=True)
simple("encrypt-1k-stable", 40, mk(1024, E143 + ",encrypt,stable_inodes"), dict(LIGHT, parts=["encrypted", "links", "xattrs", "last_blocks"]))
case("casefold", ("mkfs", 40, mk(4096, E143 + ",casefold", "-E", "encoding=utf8", "-d", "{tree}")), kernel=False)
simple("verity-unused", 40, mk(4096, E143 + ",verity"))
simple("orphan-file", 48, mk(1024, E143 + ",orphan_file", "-E", "orphan_file_size=256k"), quick=True)
simple("fast-commit", 56, mk(1024, E143 + ",fast_commit"), mount="nodelalloc")
simple("mmp", 40, mk(4096, E143 + ",mmp", "-E", "mmp_update_interval=1"), dict(LIGHT, parts=["links", "xattrs", "spread_dirs", "last_blocks"]))
simple("uninit-nolazy", 48, mk(1024, E142, "-E", "lazy_itable_init=0"))

# --- big maps --------------------------------------------------------------------
simple("deep-extents-3", 96, mk(1024, E143, "-N", "600"), {"parts": ["deep", "links", "last_blocks"], "deep_extents": 31000}, mount="nodelalloc")
simple("deep-extents-4k", 96, mk(4096, E142, "-N", "600"), {"parts": ["deep", "sparse", "links", "last_blocks"], "deep_extents": 5000}, mount="nodelalloc")
simple("triple-indirect", 112, ["-t", "ext3", "-b", "1024", "-I", "128", "-O", EXT3],
       {"parts": ["indirect", "deep", "links", "last_blocks"], "deep_extents": 20000, "extents": False})

# --- a life before ------------------------------------------------------------------
case("grown-offline", ("mkfs", 24, mk(1024, E143)), ("fill", dict(LIGHT, parts=["links", "xattrs", "deep", "htree"]), ""),
     ("run", ["e2fsck", "-fy", "{img}"]), ("size", 72), ("run", ["resize2fs", "{img}"]), ("fill", dict(LIGHT, parts=["spread_dirs", "last_inodes", "last_blocks"]), ""), quick=True)
case("grown-online", ("mkfs", 24, mk(4096, E143_32)), ("fill", dict(LIGHT, parts=["links", "xattrs", "deep", "htree"]), ""),
     ("online", 80), ("fill", dict(LIGHT, parts=["spread_dirs", "last_inodes", "last_blocks"]), ""), quick=True)
case("grown-online-1k", ("mkfs", 17, mk(1024, E147)), ("online", 33), ("online", 61), ("fill", LIGHT, "nodelalloc"))
case("grown-old", ("mkfs", 20, mk(1024, E142, inode=128)), ("fill", dict(LIGHT, parts=["links", "deep"]), ""),
     ("run", ["e2fsck", "-fy", "{img}"]), ("size", 50), ("run", ["resize2fs", "{img}"]), ("fill", dict(LIGHT, parts=["spread_dirs", "last_inodes", "last_blocks"]), ""))
case("grown-ext3", ("mkfs", 20, ["-t", "ext3", "-b", "1024", "-O", EXT3]), ("run", ["e2fsck", "-fy", "{img}"]), ("size", 60), ("run", ["resize2fs", "{img}"]), ("fill", BLOCKS, ""))
case("shrunk", ("mkfs", 96, mk(1024, E143)), ("fill", dict(LIGHT, parts=["links", "xattrs", "deep", "htree", "spread_dirs"]), ""),
     ("run", ["e2fsck", "-fy", "{img}"]), ("run", ["resize2fs", "{img}", "40M"]), ("size", 40), ("fill", dict(LIGHT, parts=["last_inodes", "last_blocks"]), ""))
case("shrunk-minimum", ("mkfs", 64, mk(4096, E143)), ("fill", LIGHT, ""), ("run", ["e2fsck", "-fy", "{img}"]), ("run", ["resize2fs", "-M", "{img}"]), ("size", "fs"), quick=True)
case("to-64bit", ("mkfs", 48, mk(1024, E143_32)), ("fill", dict(LIGHT, parts=["links", "xattrs", "deep"]), ""),
     ("run", ["e2fsck", "-fy", "{img}"]), ("run", ["resize2fs", "-b", "{img}"]), ("fill", dict(LIGHT, parts=["spread_dirs", "last_inodes", "last_blocks"]), ""))
case("to-32bit", ("mkfs", 48, mk(1024, E143)), ("fill", dict(LIGHT, parts=["links", "xattrs", "deep"]), ""),
     ("run", ["e2fsck", "-fy", "{img}"]), ("run", ["resize2fs", "-s", "{img}"]), ("fill", dict(LIGHT, parts=["spread_dirs", "last_blocks"]), ""))
case("ext3-to-ext4", ("mkfs", 56, ["-t", "ext3", "-b", "1024", "-O", EXT3]), ("fill", dict(BLOCKS, parts=["links", "indirect", "htree", "xattrs"]), ""),
     ("run", ["tune2fs", "-O", "extents,uninit_bg,dir_index,flex_bg,huge_file", "{img}"]), ("run?", ["e2fsck", "-fyD", "{img}"]),
     ("fill", dict(LIGHT, parts=["symlinks", "deep", "sparse", "spread_dirs", "last_inodes", "last_blocks"]), ""), quick=True)
case("ext2-to-ext3", ("mkfs", 48, ["-t", "ext2", "-b", "1024", "-O", EXT2]), ("fill", dict(BLOCKS, parts=["links", "indirect"]), ""),
     ("run", ["tune2fs", "-j", "{img}"]), ("fill", dict(BLOCKS, parts=["symlinks", "spread_dirs", "last_blocks"]), ""))
case("csum-turned-on", ("mkfs", 48, mk(1024, E142)), ("fill", LIGHT, ""), ("run?", ["e2fsck", "-fyD", "{img}"]), ("run", ["tune2fs", "-O", "metadata_csum", "{img}"]))
case("inodes-widened", ("mkfs", 48, ["-t", "ext3", "-b", "1024", "-I", "128", "-O", EXT3]), ("fill", dict(BLOCKS, parts=["links", "indirect", "xattrs", "acls", "htree", "spread_dirs"]), ""),
     ("run", ["e2fsck", "-fy", "{img}"]), ("run", ["tune2fs", "-I", "256", "{img}"]), ("fill", dict(BLOCKS, parts=["symlinks", "names", "last_blocks"]), ""))
case("uuid-changed", ("mkfs", 48, mk(1024, E147)), ("fill", LIGHT, ""), ("run", ["tune2fs", "-f", "-U", "f0e1d2c3-0000-4000-8000-123456789abc", "{img}"]))
case("full", ("mkfs", 32, mk(1024, E143, "-m", "0")), ("fill", dict(LIGHT, parts=["links", "xattrs", "htree", "deep", "mix_full"]), ""), quick=True)

# --- kept at full size: used blocks only, the feature named --------------------------
simple("bigalloc", 96, ["-t", "ext4", "-b", "1024", "-C", "16384", "-O", E143 + ",bigalloc"], dict(LIGHT, parts=["links", "xattrs", "deep", "htree"]), keep="bigalloc", quick=True)
simple("meta-bg", 56, mk(1024, E143 + ",meta_bg,^resize_inode"), keep="meta_bg", quick=True)
simple("meta-bg-old", 56, mk(4096, E142 + ",meta_bg,^resize_inode", "-g", "256"), keep="meta_bg")
simple("sparse-super2", 56, mk(1024, E143 + ",sparse_super2,^resize_inode"), keep="sparse_super2", quick=True)
simple("external-journal", 48, mk(1024, E143.replace("has_journal,", ""), "-J", "device={jdev}"), dict(LIGHT, parts=["links", "xattrs", "deep", "htree"]),
       keep="external journal", extra=["{name}.journal"])

# --- odd shapes ------------------------------------------------------------------------
TINY = {"parts": ["links", "symlinks", "xattrs", "names", "nodes", "spread_dirs", "last_inodes", "last_blocks", "again"], "max_inodes": 6000,
        "xattr_files": 10, "spread": 12, "keep_last": 10, "again_bytes": 200 << 10}
SCRAPS = {"parts": ["scraps"]}


def kib(blocks):
    return blocks / 1024


# Behind the last whole group, a rest of so many blocks: around what a group needs for itself, mke2fs and resize2fs draw the line.
for rest in (1, 60, 300, 640, 1100, 2111, 4097, 8191):
    simple("rest-%d" % rest, kib(1 + 3 * 8192 + rest), ["-t", "ext4", "-b", "1024", "-O", E143 if rest % 2 else E142], TINY)
    simple("rest-noflex-%d" % rest, kib(1 + 4 * 4096 + rest % 4096), ["-t", "ext4", "-b", "1024", "-g", "4096", "-O", (E142 if rest % 2 else E147) + ",^flex_bg"], TINY)
for blocks in (64, 80, 100, 150, 300, 1000):
    simple("few-blocks-%d" % blocks, kib(blocks), ["-t", "ext2", "-b", "1024", "-N", "16"], SCRAPS)
    simple("few-4k-blocks-%d" % blocks, kib(blocks * 4), ["-t", "ext4", "-b", "4096", "-O", E147, "-N", "32"], SCRAPS)
simple("few-blocks-floppy", kib(1440), ["-t", "ext2", "-T", "floppy"], SCRAPS)
simple("few-blocks-csum", kib(400), ["-t", "ext4", "-b", "1024", "-O", E143 + ",^has_journal"], SCRAPS)
for per_group in (1000, 1016, 3208, 8184):
    simple("groups-of-%d" % per_group, 40, ["-t", "ext4", "-b", "1024", "-g", str(per_group), "-O", E143], more(TINY, "deep", deep_extents=300))
simple("groups-of-256", 12, ["-t", "ext4", "-b", "1024", "-g", "256", "-O", E143 + ",^resize_inode", "-N", "1500"], TINY)
simple("groups-of-256-old", 12, ["-t", "ext2", "-b", "1024", "-g", "256", "-O", EXT2, "-N", "1500"], dict(TINY, extents=False), keep="meta_bg")
simple("groups-of-1000-4k", 60, ["-t", "ext4", "-b", "4096", "-g", "1000", "-O", E147], TINY)
simple("groups-of-16384-2k", 110, ["-t", "ext4", "-b", "2048", "-g", "16384", "-O", E142], TINY)
for flex in (1, 8, 1024, 65536):
    simple("flex-%d" % flex, 44, mk(1024, E142 if flex == 8 else E143, "-G", str(flex)), TINY)
simple("packed-meta", 60, mk(1024, E143, "-G", "4", "-E", "packed_meta_blocks=1"), TINY)
simple("packed-meta-4k", 60, mk(4096, E142, "-E", "packed_meta_blocks=1"), TINY)
simple("raid-1k", 44, mk(1024, E143, "-E", "stride=64,stripe_width=192"), TINY)
simple("raid-noflex", 44, mk(1024, E142 + ",^flex_bg", "-E", "stride=17,stripe_width=34"), TINY)
simple("inodes-most", 48, mk(1024, E143, "-N", "48000", inode=128), more(TINY, max_inodes=50000, keep_last=30))
simple("inodes-fewest", 24, ["-t", "ext4", "-b", "1024", "-O", E143, "-N", "16"], SCRAPS)
simple("inodes-fewest-4k", 64, mk(4096, E147, "-N", "16"), SCRAPS)
simple("inodes-none-free", 32, mk(1024, E143, "-N", "2000"), {"parts": ["links", "all_inodes"]})
simple("inodes-none-free-4k", 48, mk(4096, E142, "-N", "1500"), {"parts": ["links", "all_inodes"]})
simple("inode-is-block", 40, mk(1024, E143, inode=1024), TINY)
simple("inode-512-1k", 40, mk(1024, E142, inode=512), TINY)
simple("inode-4096", 60, mk(4096, E147 + ",inline_data", "-N", "3000", inode=4096), first(TINY, "inline"))
simple("inode-2048-ea", 60, mk(2048, E143 + ",inline_data,ea_inode", inode=2048), first(TINY, "inline", "big_xattrs"))
case("smaller-than-partition", ("mkfs", 30, mk(1024, E143)), ("size", 44.3), ("fill", TINY, ""))
for bs, per_group in ((8192, "1024"), (16384, "256"), (65536, "256")):
    case("blocks-of-%d" % bs, ("mkfs", 90, ["-t", "ext4", "-b", str(bs), "-g", per_group, "-O", E143, "-d", "{tree}"]), kernel=False)
    case("blocks-of-%d-old" % bs, ("mkfs", 90, ["-t", "ext2", "-b", str(bs), "-g", per_group, "-O", EXT2, "-d", "{tree}"]), kernel=False)

# --- odd features ------------------------------------------------------------------------
simple("every-group-a-backup", 40, mk(1024, E143 + ",^sparse_super,^resize_inode"), TINY)
simple("every-group-noflex", 40, mk(1024, EXT4 + ",^sparse_super,^resize_inode,^flex_bg,^has_journal"), TINY)
simple("no-resize-noflex", 40, mk(1024, E147 + ",^resize_inode,^flex_bg"), TINY)
simple("nothing-but-extents", 40, mk(4096, "none,extent,64bit", inode=128), TINY)
# Without filetype the kernel writes types into some new directories, and e2fsck does not like them.
simple("nothing-at-all", 40, mk(1024, "none", inode=128), dict(TINY, parts=TINY["parts"][:-1], extents=False))
simple("no-filetype-ext4", 40, mk(1024, E143 + ",^filetype"), TINY)
simple("no-ext-attr", 40, mk(1024, E143 + ",^ext_attr"), TINY)
simple("no-huge-file", 40, mk(1024, E143 + ",^huge_file,^dir_nlink,^large_file"), TINY)
simple("no-extra-isize", 40, mk(1024, E142 + ",^extra_isize"), TINY)
simple("resize-none", 40, mk(1024, E143, "-E", "resize=41000"), TINY)
simple("resize-huge", 40, mk(1024, E143, "-E", "resize=2000000000"), TINY)
simple("lazy", 40, mk(1024, E147, "-E", "lazy_itable_init=1,lazy_journal_init=1"), TINY, mount="noinit_itable")
simple("lazy-not", 40, mk(4096, E147, "-E", "lazy_itable_init=0,lazy_journal_init=0"), TINY)
simple("largefile-type", 64, ["-t", "ext4", "-T", "largefile"], {"parts": ["links", "symlinks", "deep", "last_blocks"], "deep_extents": 200})
simple("news-type", 64, ["-t", "ext4", "-T", "news"], TINY)
simple("root-owner", 40, mk(1024, E143, "-E", "root_owner=1000:4000000000"), TINY)
simple("hurd", 40, ["-t", "ext2", "-b", "1024", "-o", "hurd", "-I", "128"], dict(TINY, parts=["links", "symlinks", "names", "last_inodes", "last_blocks"], extents=False))
simple("creator-freebsd", 40, mk(1024, E142, "-o", "freebsd"), TINY)
simple("revision-0-4k", 40, ["-t", "ext2", "-b", "4096", "-r", "0"], dict(TINY, parts=["links", "symlinks", "indirect", "names", "last_inodes"], extents=False))
simple("journal-least-4k", 60, mk(4096, E143, "-J", "size=4"), TINY)
simple("journal-large-part", 200, mk(1024, E142, "-J", "size=60"), TINY)
simple("journal-fast-commit", 60, mk(1024, E147 + ",fast_commit", "-J", "size=8,fast_commit_size=512"), TINY)
simple("orphan-file-large", 60, mk(4096, E147, "-E", "orphan_file_size=2M"), TINY)
simple("label-odd", 40, mk(1024, E143, "-L", "a/b\\\t\x1b[31m<&\"'", "-M", "/x y"), TINY)
simple("bad-blocks-4k", 160, ["-t", "ext4", "-b", "4096", "-O", E142, "-l", "{bad}"], TINY)
simple("bad-blocks-ext3", 56, ["-t", "ext3", "-b", "1024", "-O", EXT3, "-l", "{bad}"], dict(TINY, extents=False))
case("hash-tea", ("mkfs", 40, mk(1024, E143)), ("run", ["tune2fs", "-E", "hash_alg=tea", "{img}"]), ("fill", more(TINY, "htree", htree=3000), ""))
case("hash-legacy", ("mkfs", 40, mk(1024, E142)), ("run", ["tune2fs", "-E", "hash_alg=legacy", "{img}"]), ("fill", more(TINY, "htree", htree=3000), ""))
case("hash-unsigned", ("mkfs", 40, mk(4096, E143)), ("debugfs", "ssv flags 2"), ("fill", more(TINY, "htree", htree=3000), ""))
simple("htree-full-names", 64, mk(1024, E143 + ",large_dir"), dict(DIRS, htree=30000, htree_name=250, max_inodes=60000), mount="nodelalloc")
simple("hard-links-31990", 40, ["-t", "ext2", "-b", "1024", "-O", EXT2], {"parts": ["hard_links", "last_blocks"], "extents": False})
simple("hard-links-64990", 40, mk(4096, E143), {"parts": ["hard_links", "last_blocks"], "hard_links": 64990})
simple("lost-found-gone", 40, mk(1024, E143), first(TINY, "no_lost_found"))
simple("lost-found-renamed", 40, mk(1024, E142), first(TINY, "renamed_lost_found"))
simple("boot-loader", 40, mk(1024, E143), more(TINY, "boot_loader"))
simple("boot-loader-late", 40, mk(4096, E142), more(TINY, "boot_loader"))
simple("full-4k", 40, mk(4096, E147, "-m", "0"), dict(LIGHT, parts=["links", "xattrs", "htree", "deep", "mix_full"]))
simple("full-ext2", 30, ["-t", "ext2", "-b", "1024", "-O", EXT2, "-m", "0"], dict(BLOCKS, parts=["links", "indirect", "mix_full"]))
simple("full-noflex", 30, mk(1024, E142 + ",^flex_bg,^has_journal", "-m", "0"), dict(LIGHT, parts=["links", "fragmented", "mix_full"]))
simple("extents-sparse", 60, mk(4096, E143), {"parts": ["sparse", "deep", "fragmented", "last_blocks"], "deep_extents": 3000})
simple("extents-in-1k-full", 40, mk(1024, E143, "-m", "0"), {"parts": ["deep", "fragmented", "mix_full"], "deep_extents": 6000}, mount="nodelalloc")
case("garbage-ext2", ("garbage",), ("mkfs", 40, ["-t", "ext2", "-b", "1024", "-O", EXT2, "-E", "nodiscard"]), ("fill", dict(TINY, extents=False), ""))
for name, features, extra in (("made-with-quota", E143 + ",quota", []), ("made-with-project", E147 + ",quota,project", ["-E", "quotatype=usrquota:grpquota:prjquota"]),
                              ("android", E147.replace(",orphan_file", "") + ",encrypt,stable_inodes,verity,quota,project,casefold", ["-E", "encoding=utf8"]),
                              ("casefold-strict", E143 + ",casefold", ["-E", "encoding=utf8,encoding_flags=strict"]),
                              ("verity-casefold", E147 + ",verity,casefold,large_dir,ea_inode,inline_data", [])):
    # With -d mke2fs counts quota before it copies.
    case(name, ("mkfs", 40, mk(1024, features, "-d", "{tree}", *extra)), ("run?", ["e2fsck", "-fy", "{img}"]), kernel=False)
case("huge-files", ("run", ["sh", "-c", "truncate -s 300M {img}; printf '[fs_types]\n many = {{\n make_hugefiles = true\n num_hugefiles = 3\n hugefiles_size = 60M\n"
                            " hugefiles_dir = /big\n hugefiles_name = huge\n hugefiles_digits = 3\n zero_hugefiles = false\n }}\n' > {bad};"
                            " MKE2FS_CONFIG={bad} mke2fs -q -F -t ext4 -T many -b 4096 -O " + E143 + " {img}"]), ("fill", TINY, ""))

# --- odd lives -----------------------------------------------------------------------------
FSCK = ("run", ["e2fsck", "-fy", "{img}"])


EARLY = dict(TINY, parts=["links", "symlinks", "xattrs", "names", "nodes", "spread_dirs", "again"])


def life(name, size, args, *steps, profile=None, mount="", again=None, **keys):
    """Filled, changed by a tool, filled again if `again` says with what."""
    case(name, ("mkfs", size, args), ("fill", profile or (EARLY if again else TINY), mount), FSCK, *steps, *([("fill", again, "")] if again else []), **keys)


def tune(*words):
    return ("run", ["tune2fs", *words, "{img}"])


def resize(size, *words):
    return [("size", size), ("run", ["resize2fs", *words, "{img}"])]


def shrink(size):
    return [("run", ["resize2fs", "{img}", "%dM" % size]), ("size", size)]


MORE = dict(TINY, parts=["fragmented", "subdirs", "last_inodes", "last_blocks"], subdirs=60)
life("journal-taken-off", 40, mk(1024, E143), tune("-O", "^has_journal"), again=MORE)
life("journal-fragmented", 40, ["-t", "ext2", "-b", "1024", "-O", EXT2], tune("-j", "-J", "size=4"), again=dict(MORE, extents=False, parts=["last_inodes", "last_blocks"]),
     profile=dict(TINY, extents=False, parts=EARLY["parts"] + ["indirect", "fragmented"]))
life("journal-fragmented-extents", 40, mk(1024, E143 + ",^has_journal"), tune("-O", "has_journal", "-J", "size=2"), again=MORE)
life("csum-turned-off", 40, mk(1024, E143), tune("-O", "^metadata_csum"), ("run?", ["e2fsck", "-fy", "{img}"]), again=MORE)
life("resize-inode-off", 40, mk(1024, E143), tune("-O", "^resize_inode"), ("run?", ["e2fsck", "-fy", "{img}"]), again=MORE)
life("dir-index-off", 40, mk(1024, E142), tune("-O", "^dir_index"), ("run?", ["e2fsck", "-fy", "{img}"]), profile=more(EARLY, "htree", htree=800), again=MORE)
life("uninit-off", 40, mk(1024, E142), tune("-O", "^uninit_bg"), ("run?", ["e2fsck", "-fy", "{img}"]), again=MORE)
life("huge-file-off", 40, mk(1024, E143), tune("-O", "^huge_file"), ("run?", ["e2fsck", "-fy", "{img}"]))
life("orphan-file-off", 40, mk(1024, E147), tune("-O", "^orphan_file"), again=MORE)
life("orphan-file-on", 40, mk(1024, E143), tune("-O", "orphan_file"), FSCK, again=MORE)
life("seed-on-uuid-new", 40, mk(1024, E143), tune("-O", "metadata_csum_seed"), tune("-U", "random"), again=MORE)
life("uuid-new-old", 40, mk(1024, E142), tune("-f", "-U", "random"), again=MORE)
life("ea-inode-on", 40, mk(1024, E143), tune("-O", "ea_inode"), again=first(MORE, "big_xattrs"))
life("large-dir-on", 40, mk(1024, E143), tune("-O", "large_dir"), again=MORE)
life("many-turned-on", 40, mk(4096, E143), tune("-O", "verity,encrypt,stable_inodes"), again=dict(MORE, parts=["subdirs"]))
life("sparse-super-on", 40, mk(1024, E142 + ",^sparse_super,^resize_inode"), tune("-O", "sparse_super"), ("run?", ["e2fsck", "-fy", "{img}"]), again=MORE)
life("widened-old-ext4", 40, mk(1024, EXT4.replace(",flex_bg", "").replace(",extra_isize", ""), inode=128), tune("-I", "256"), again=MORE)
life("all-of-ext3-on", 40, ["-t", "ext3", "-b", "1024", "-O", EXT3, "-I", "256"], tune("-O", "extent,huge_file,dir_nlink,extra_isize,uninit_bg"), ("run?", ["e2fsck", "-fyD", "{img}"]),
     tune("-O", "metadata_csum"), ("run?", ["e2fsck", "-fy", "{img}"]), profile=dict(EARLY, extents=False), again=MORE)
life("maps-to-extents", 40, ["-t", "ext3", "-b", "1024", "-O", EXT3, "-I", "256"], tune("-O", "extent"), ("run?", ["e2fsck", "-fy", "-E", "bmap2extent", "{img}"]),
     profile=dict(BLOCKS, parts=["links", "indirect", "xattrs"]), again=MORE)
life("dirs-rebuilt-4k", 60, mk(4096, E147), ("run?", ["e2fsck", "-fyD", "{img}"]), profile=more(EARLY, "htree", htree=5000), again=MORE)
life("read-only", 40, mk(1024, E143), tune("-O", "read-only"), kernel=False)
life("grown-and-shrunk", 20, mk(1024, E143), *resize(60), *shrink(30), *resize(90), *shrink(41), *resize(70), again=MORE)
life("grown-and-shrunk-old", 20, mk(1024, E142 + ",^flex_bg", inode=128), *resize(60), *shrink(30), *resize(77), *shrink(33), *resize(50), again=MORE)
life("grown-and-shrunk-ext3", 20, ["-t", "ext3", "-b", "1024", "-O", EXT3], *resize(60), *shrink(27), *resize(50), profile=dict(EARLY, extents=False), again=dict(MORE, extents=False))
life("grown-and-shrunk-4k", 40, mk(4096, E147), *resize(160), *shrink(60), *resize(200), again=MORE)
life("grown-past-reserve", 17, mk(1024, E142, "-E", "resize=40000"), *resize(400), again=MORE)
life("grown-no-resize-inode", 17, mk(1024, E143 + ",^resize_inode"), *resize(150), again=MORE)
life("grown-by-one-group", 17, mk(1024, E143), *resize(25), *resize(33), *resize(41), *resize(42), again=MORE)
life("minimum-then-grown", 60, mk(1024, E143), ("run", ["resize2fs", "-M", "{img}"]), *resize(45), again=MORE)
life("minimum-of-ext2", 60, ["-t", "ext2", "-b", "1024", "-O", EXT2], ("run", ["resize2fs", "-M", "{img}"]), ("size", "fs"), profile=dict(TINY, extents=False))
life("to-64bit-grown", 30, mk(1024, E143_32), ("run", ["resize2fs", "-b", "{img}"]), *resize(80), again=MORE)
life("to-32bit-shrunk", 60, mk(4096, E143), ("run", ["resize2fs", "-s", "{img}"]), *shrink(50), again=MORE)
life("there-and-back-64bit", 40, mk(1024, E142), ("run", ["resize2fs", "-b", "{img}"]), ("run", ["resize2fs", "-s", "{img}"]), again=MORE)
life("quota-grown", 20, mk(1024, E143), tune("-Q", "usrquota,grpquota"), ("run?", ["e2fsck", "-fy", "{img}"]), *resize(60), kernel=True, profile=more(TINY, "owners", owner_files=120))
case("online-thrice", ("mkfs", 17, mk(1024, E143)), ("fill", EARLY, ""), ("online", 26), ("fill", dict(MORE, parts=["fragmented", "subdirs"]), ""), ("online", 50), ("online", 100), ("fill", dict(MORE, parts=["last_inodes", "last_blocks"]), ""))
case("online-no-resize-inode", ("mkfs", 17, mk(4096, E147)), ("fill", dict(TINY, parts=["links", "spread_dirs"]), ""), ("online", 300), ("fill", MORE, ""))

# --- more that is kept ------------------------------------------------------------------------
KEPT = dict(LIGHT, parts=["links", "xattrs", "deep", "htree", "spread_dirs", "last_blocks"])
simple("bigalloc-4k", 160, ["-t", "ext4", "-b", "4096", "-C", "65536", "-O", E147 + ",bigalloc"], KEPT, keep="bigalloc")
simple("bigalloc-old", 90, ["-t", "ext4", "-b", "1024", "-C", "4096", "-O", E142 + ",bigalloc"], KEPT, keep="bigalloc")
simple("bigalloc-no-journal", kib(70001), ["-t", "ext4", "-b", "1024", "-C", "8192", "-O", E143 + ",bigalloc,^has_journal"], KEPT, keep="bigalloc")
simple("bigalloc-noflex", 90, ["-t", "ext4", "-b", "2048", "-C", "8192", "-O", E143 + ",bigalloc,^flex_bg"], KEPT, keep="bigalloc")
simple("bigalloc-32", kib(120003), ["-t", "ext4", "-b", "2048", "-C", "65536", "-O", E147 + ",bigalloc,inline_data,ea_inode", "-g", "1024", "-N", "3000"],
       dict(KEPT, parts=["inline", "big_xattrs"] + KEPT["parts"]), keep="bigalloc")
simple("bigalloc-meta-bg", 90, ["-t", "ext4", "-b", "1024", "-C", "2048", "-O", E143 + ",bigalloc,meta_bg,^resize_inode", "-g", "2048"], KEPT, keep="bigalloc")
case("bigalloc-quota", ("mkfs", 60, ["-t", "ext4", "-b", "1024", "-C", "8192", "-O", E143 + ",bigalloc"]), ("fill", KEPT, ""),
     ("run", ["tune2fs", "-Q", "usrquota,grpquota", "{img}"]), *[("run?", ["e2fsck", "-fy", "{img}"])] * 2, keep="bigalloc")
SHARE = [("share",) + tuple("/sub/file-%03d-%s" % (i, "n" * (i % 120)) for i in (360, 240, 120, 359, 358)), ("run?", ["e2fsck", "-fy", "{img}"])]
case("shared-blocks", ("mkfs", 24, mk(1024, E143 + ",^has_journal", "-d", "{tree}")), *SHARE, kernel=False, keep="shared_blocks", quick=True)
case("shared-blocks-4k", ("mkfs", 40, mk(4096, EXT4 + ",^has_journal", "-d", "{tree}")), *SHARE, kernel=False, keep="shared_blocks")
simple("meta-bg-plain", 90, mk(1024, EXT4 + ",meta_bg,^resize_inode,^flex_bg"), KEPT, keep="meta_bg")
simple("meta-bg-many", 60, mk(1024, E147 + ",meta_bg,^resize_inode", "-g", "512"), KEPT, keep="meta_bg")
for count in (0, 1, 2):
    simple("backups-%d" % count, 48, mk(1024, E143 + ",sparse_super2" + (",^resize_inode" if count == 1 else ""), "-E", "num_backup_sb=%d" % count), KEPT, keep="sparse_super2")
# Whose descriptors call slots unused that held something once.
life("bigalloc-emptied", 90, ["-t", "ext4", "-b", "1024", "-C", "4096", "-O", E143 + ",bigalloc"], profile=dict(KEPT, parts=["links", "spread_dirs", "last_inodes"], max_inodes=9000),
     keep="bigalloc")
simple("external-journal-4k", 48, mk(1024, E142.replace("has_journal,", ""), "-J", "device={jdev}"), dict(LIGHT, parts=["links", "xattrs", "deep", "htree"]),
       keep="external journal", extra=["{name}.journal"])

# --- odd shapes ---------------------------------------------------------------------------------
for bs in (8192, 16384, 32768, 65536):
    # As mke2fs makes them by itself: one group, larger than the filesystem.
    case("pages-of-%d" % bs, ("mkfs", 120, ["-t", "ext4", "-b", str(bs), "-O", E147, "-d", "{tree}"]), kernel=False)
    case("pages-of-%d-inline" % bs, ("mkfs", 220, ["-t", "ext4", "-b", str(bs), "-g", "512", "-O", E143 + ",inline_data,ea_inode", "-I", "1024", "-N", "2400", "-d", "{tree}"]),
         kernel=False, keep="meta_bg" if bs == 8192 else None)
case("pages-of-65536-uninit", ("mkfs", 140, ["-t", "ext4", "-b", "65536", "-g", "512", "-O", E142 + ",^flex_bg", "-d", "{tree}"]), kernel=False)
case("pages-of-32768-ext3", ("mkfs", 140, ["-t", "ext3", "-b", "32768", "-g", "512", "-O", EXT3, "-d", "{tree}"]), kernel=False)
case("bigalloc-64k-pages", ("mkfs", 400, ["-t", "ext4", "-b", "65536", "-C", "262144", "-O", E147 + ",bigalloc", "-d", "{tree}"]), kernel=False, keep="bigalloc")
for size in (128, 256, 1024):
    simple("descriptors-of-%d" % size, 44, mk(1024, E143, "-E", "desc_size=%d" % size), TINY)
simple("descriptors-of-512-4k", 60, mk(4096, E147, "-E", "desc_size=512"), TINY)
simple("uninit-64bit", 44, mk(1024, E142 + ",64bit"), TINY)
simple("uninit-64bit-noflex", 44, mk(1024, E142 + ",64bit,^flex_bg", "-E", "desc_size=128"), TINY)
simple("group-just-full", kib(1 + 8192), ["-t", "ext4", "-b", "1024", "-O", E143, "-m", "0"], dict(TINY, parts=["links", "fragmented", "mix_full"]))
simple("groups-just-full-4k", kib(3 * 2048 * 4), mk(4096, E142, "-m", "0"), dict(TINY, parts=["links", "fragmented", "mix_full"]))
simple("flex-largest", 44, mk(1024, E143, "-G", str(1 << 31)), TINY)
simple("groups-of-256-plain", 24, ["-t", "ext4", "-b", "1024", "-g", "256", "-O", E143, "-N", "1600"], TINY, keep="meta_bg")
simple("groups-of-256-alone", 24, ["-t", "ext4", "-b", "1024", "-g", "256", "-O", E142 + ",^flex_bg,^resize_inode", "-N", "1600"], TINY)
simple("inodes-per-block-one", 60, mk(4096, E143, "-N", "1000", inode=4096), TINY)
simple("journal-at-the-end", 60, mk(1024, E143, "-J", "size=4,location=50M"), TINY)
simple("packed-and-two-backups", 60, mk(1024, E143 + ",sparse_super2", "-E", "packed_meta_blocks=1,num_backup_sb=2"), TINY, keep="sparse_super2")
simple("zeroed-before", 44, mk(4096, E147, "-E", "assume_storage_prezeroed=1"), TINY)
simple("reserved-most", 44, mk(1024, E143, "-m", "50"), TINY)
simple("half-of-inodes-large", 60, mk(2048, E147 + ",large_dir,ea_inode,inline_data", "-N", "600", inode=2048), first(TINY, "inline", "big_xattrs"))
case("online-past-reserve", ("mkfs", 17, mk(1024, E143, "-E", "resize=20000")), ("fill", dict(TINY, parts=["links", "spread_dirs"]), ""), ("online", 300), ("fill", MORE, ""))
life("holes-of-bad-blocks", 60, mk(1024, E143), ("run", ["sh", "-c", "seq 20000 37 29000 > {bad}; for b in $(cat {bad}); do debugfs -R \"testb $b\" {img} 2>/dev/null | "
                                                      "grep -q 'not in use' && echo $b; done > {bad}.free; e2fsck -fy -l {bad}.free {img}; rm {bad}.free; true"]), again=MORE)
life("directories-moved", 60, mk(4096, E142), ("run?", ["e2fsck", "-fyD", "-E", "no_optimize_extents", "{img}"]), tune("-O", "^dir_index"), ("run?", ["e2fsck", "-fyD", "{img}"]), again=MORE)
life("journal-off-and-on", 60, mk(1024, E147), tune("-O", "^has_journal"), tune("-O", "has_journal", "-J", "size=8"), again=MORE)
life("csum-on-late", 60, mk(1024, EXT4), tune("-O", "metadata_csum"), ("run?", ["e2fsck", "-fyD", "{img}"]), again=MORE)
life("mmp-on", 44, mk(1024, E143), tune("-O", "mmp"), kernel=True)
life("shrunk-to-a-group", 60, mk(1024, E143 + ",^resize_inode"), *shrink(16))
