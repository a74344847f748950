//! Trees of other machines: a laptop, RAIDs, live systems, hostile ones.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::mounts::unescape;
use super::*;
use crate::scratch::Scratch;

/// A sysfs tree in a folder of its own.
struct Tree {
    root: Scratch,
}

impl Tree {
    fn new() -> Self {
        let root = Scratch::new("sysfs");
        fs::create_dir_all(root.path("class/block")).unwrap();
        Self { root }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.root.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// Adds a device at `folder`, its last part being the name, with `files` in it.
    fn add(&self, folder: &str, dev: &str, bytes: u64, files: &[(&str, &str)]) {
        let name = folder.rsplit('/').next().unwrap();
        self.write(&format!("{folder}/dev"), dev);
        self.write(&format!("{folder}/size"), &(bytes / 512).to_string());
        for (file, text) in files {
            self.write(&format!("{folder}/{file}"), text);
        }
        symlink(
            format!("../../{folder}"),
            self.root.path("class/block").join(name),
        )
        .unwrap();
    }

    fn hold(&self, folder: &str, holder: &str) {
        self.write(&format!("{folder}/holders/{holder}"), "");
    }

    fn snapshot(&self, mountinfo: &str, swaps: &str) -> Snapshot {
        Snapshot::read(self.root.folder(), mountinfo, swaps).unwrap()
    }
}

const USB: &str = "devices/pci0000:00/0000:00:14.0/usb2/2-1";
const NVME: &str = "devices/pci0000:00/0000:00:1d.0/0000:3d:00.0/nvme/nvme0/nvme0n1";
const MMC: &str = "devices/platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0";
const EMMC: &str = "devices/pci0000:00/0000:00:1a.0/mmc_host/mmc1/mmc1:0001/block/mmcblk1";

/// A laptop: LUKS on NVMe with LVM in it, a USB card reader with a mounted card and an empty slot, a
/// built-in card slot, soldered eMMC, a loop device and what is never listed.
fn laptop() -> Tree {
    let tree = Tree::new();
    let sdb = format!("{USB}/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb");
    tree.write(&format!("{USB}/bDeviceClass"), "00");
    tree.write(&format!("{USB}/serial"), "000000000819");
    let card = [
        ("removable", "1"),
        ("ro", "0"),
        ("diskseq", "11"),
        ("queue/logical_block_size", "512"),
        ("queue/physical_block_size", "512"),
        ("device/vendor", "Generic "),
        ("device/model", "STORAGE DEVICE  "),
    ];
    tree.add(&sdb, "8:16", 31_914_983_424, &card);
    tree.add(
        &format!("{sdb}/sdb1"),
        "8:17",
        268_435_456,
        &[("partition", "1"), ("ro", "0")],
    );
    tree.add(
        &format!("{sdb}/sdb2"),
        "8:18",
        31_000_000_512,
        &[("partition", "2"), ("ro", "0")],
    );
    tree.add(
        &sdb.replace(":0/block/sdb", ":1/block/sdc"),
        "8:32",
        0,
        &[("removable", "1")],
    );

    tree.add(
        NVME,
        "259:0",
        1_000_204_886_016,
        &[
            ("removable", "0"),
            ("ro", "0"),
            ("queue/physical_block_size", "4096"),
        ],
    );
    tree.write(
        "devices/pci0000:00/0000:00:1d.0/0000:3d:00.0/nvme/nvme0/model",
        "WD SN770",
    );
    tree.add(
        &format!("{NVME}/nvme0n1p1"),
        "259:1",
        536_870_912,
        &[("partition", "1")],
    );
    tree.add(
        &format!("{NVME}/nvme0n1p2"),
        "259:2",
        999_000_000_512,
        &[("partition", "2")],
    );
    tree.hold(&format!("{NVME}/nvme0n1p2"), "dm-0");
    let mapped = "devices/virtual/block";
    tree.add(
        &format!("{mapped}/dm-0"),
        "254:0",
        998_000_000_000,
        &[("dm/name", "luks-1")],
    );
    tree.hold(&format!("{mapped}/dm-0"), "dm-1");
    tree.hold(&format!("{mapped}/dm-0"), "dm-2");
    tree.add(
        &format!("{mapped}/dm-1"),
        "254:1",
        900_000_000_000,
        &[("dm/name", "vg-root")],
    );
    tree.add(
        &format!("{mapped}/dm-2"),
        "254:2",
        90_000_000_000,
        &[("dm/name", "vg-swap")],
    );

    // A slot in the machine says that it is not removable.
    tree.add(
        MMC,
        "179:0",
        63_864_569_856,
        &[("removable", "0"), ("ro", "1")],
    );
    let slot = MMC.trim_end_matches("/block/mmcblk0");
    tree.write(&format!("{slot}/type"), "SD");
    symlink("../..", tree.root.path(MMC).join("device")).unwrap();
    tree.write(&format!("{slot}/name"), "SN64G");
    tree.write(&format!("{slot}/serial"), "0x8c2a4b1d");
    tree.add(
        &format!("{MMC}/mmcblk0p1"),
        "179:1",
        63_860_000_256,
        &[("partition", "1")],
    );
    tree.add(
        EMMC,
        "179:32",
        31_268_536_320,
        &[("removable", "0"), ("device/type", "MMC")],
    );
    tree.add(&format!("{EMMC}/mmcblk1boot0"), "179:64", 4_194_304, &[]);

    let loops = |name: &str| format!("{mapped}/{name}");
    tree.add(
        &loops("loop0"),
        "7:0",
        1 << 30,
        &[("loop/backing_file", "/home/me/a b.img")],
    );
    tree.add(&loops("loop1"), "7:1", 0, &[]);
    tree.add(
        &loops("loop10"),
        "7:10",
        1 << 20,
        &[("loop/backing_file", "/media/card/b.img")],
    );
    tree.add(&loops("nbd0"), "43:0", 0, &[]);
    for (name, dev) in [("zram0", "253:0"), ("ram0", "1:0"), ("sr0", "11:0")] {
        tree.add(&loops(name), dev, 1 << 30, &[]);
    }
    tree
}

const MOUNTS: &str = "\
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw,errors=remount-ro
28 27 259:1 / /boot/efi rw,relatime shared:2 - vfat /dev/nvme0n1p1 rw,fmask=0022
29 27 0:25 / /proc rw - proc proc rw
31 27 8:17 / /media/my\\040card rw,nosuid shared:4 - vfat /dev/sdb1 rw
32 27 8:18 / /media/card ro,nosuid shared:5 - ext4 /dev/sdb2 rw
33 27 8:18 /a /mnt/bind ro shared:5 - ext4 /dev/sdb2 rw
34 27 7:10 / /mnt/inner rw - ext4 /dev/loop10 rw
35 27 179:1 / /media/slot ro - ext4 /dev/mmcblk0p1 ro
broken line
36 27 x:y / /nowhere rw - ext4 /dev/null rw
";
const SWAPS: &str = "\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/dm-2                               partition\t8388604\t\t0\t\t-2
";

fn named<'a>(disks: &'a [DeviceInfo], name: &str) -> &'a DeviceInfo {
    disks.iter().find(|info| info.name == name).unwrap()
}

#[test]
fn lists_a_laptop() {
    let tree = laptop();
    let disks = tree.snapshot(MOUNTS, SWAPS).disks();
    let names: Vec<_> = disks.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "sdb", "sdc", "dm-0", "dm-1", "dm-2", "loop0", "loop10", "mmcblk0", "mmcblk1",
            "nvme0n1"
        ]
    );

    let card = named(&disks, "sdb");
    assert_eq!(card.path, Path::new("/dev/sdb"));
    assert_eq!(
        (card.bus, card.removable, card.system),
        (Bus::Usb, true, false)
    );
    assert_eq!(card.model.as_deref(), Some("STORAGE DEVICE"));
    assert_eq!(card.vendor.as_deref(), Some("Generic"));
    assert_eq!(card.serial.as_deref(), Some("000000000819"));
    assert_eq!((card.size, card.generation), (31_914_983_424, Some(11)));
    assert_eq!((card.logical_block, card.physical_block), (512, 512));
    let mounted: Vec<_> = card
        .volumes
        .iter()
        .map(|v| (&v.path, &v.mount_points))
        .collect();
    assert_eq!(
        mounted,
        [
            (
                &PathBuf::from("/dev/sdb1"),
                &vec![PathBuf::from("/media/my card")]
            ),
            (
                &PathBuf::from("/dev/sdb2"),
                &vec![PathBuf::from("/media/card"), PathBuf::from("/mnt/bind")]
            ),
        ]
    );
    // Mounted read-only here, but the file system itself is writable.
    assert!(card.volumes[1].mounted_read_write);
    assert_eq!(card.volumes[1].fs_type.as_deref(), Some("ext4"));

    assert_eq!(named(&disks, "sdc").size, 0);

    let slot = named(&disks, "mmcblk0");
    assert_eq!(
        (slot.bus, slot.removable, slot.read_only),
        (Bus::Mmc, true, true)
    );
    assert_eq!(slot.model.as_deref(), Some("SN64G"));
    assert_eq!(slot.serial.as_deref(), Some("0x8c2a4b1d"));
    assert!(!slot.volumes[0].mounted_read_write);
    let soldered = named(&disks, "mmcblk1");
    assert_eq!((soldered.bus, soldered.removable), (Bus::Mmc, false));

    let nvme = named(&disks, "nvme0n1");
    assert_eq!(
        (nvme.bus, nvme.removable, nvme.system),
        (Bus::Nvme, false, true)
    );
    assert_eq!((nvme.logical_block, nvme.physical_block), (512, 4096));
    assert_eq!(nvme.volumes[1].in_use_by.as_deref(), Some("luks-1"));
    assert_eq!(nvme.volumes[1].mount_points, [PathBuf::from("/")]);

    let loop0 = named(&disks, "loop0");
    assert_eq!(loop0.bus, Bus::Loop);
    assert_eq!(
        loop0.backing_file.as_deref(),
        Some(Path::new("/home/me/a b.img"))
    );
    assert!(!loop0.system);
}

#[test]
fn finds_partitions_by_number() {
    let tree = laptop();
    let snapshot = tree.snapshot(MOUNTS, SWAPS);
    let part = snapshot.find((8, 18)).unwrap();
    assert!(part.is_partition);
    assert_eq!(part.parent.as_deref(), Some(Path::new("/dev/sdb")));
    assert_eq!(part.size, 31_000_000_512);
    assert_eq!(part.volumes.len(), 1);
    assert_eq!(part.volumes[0].mount_points.len(), 2);
    assert!(part.removable);
    assert!(snapshot.find((8, 99)).is_none());
}

#[test]
fn the_running_system_is_found_through_all_layers() {
    let line = |dev: &str, place: &str, source: &str| {
        format!("1 1 {dev} / {place} rw - ext4 {source} rw\n")
    };
    let header = "Filename Type Size Used Priority\n";
    let cases = [
        (line("254:1", "/", "/dev/mapper/vg-root"), "", "nvme0n1"),
        (line("259:1", "/boot", "/dev/nvme0n1p1"), "", "nvme0n1"),
        (line("8:18", "/", "/dev/root"), "", "sdb"),
        (line("8:16", "/home", "/dev/sdb"), "", "sdb"),
        (line("8:18", "/var/lib/docker", "/dev/sdb2"), "", "sdb"),
        // btrfs: a number of its own, so the source must tell.
        (line("0:40", "/", "/dev/sdb2"), "", "sdb"),
        (line("0:40", "/", "/dev/mapper/vg-root"), "", "nvme0n1"),
        (String::new(), "/dev/sdb2 partition 1 0 -2\n", "sdb"),
        (
            line("8:18", "/mnt/x", "/dev/sdb2"),
            "/mnt/x/swapfile file 1 0 -2\n",
            "sdb",
        ),
        // A live system: its root is a file on the stick.
        (
            line("8:17", "/media/card", "/dev/sdb1") + &line("7:10", "/", "/dev/loop10"),
            "",
            "sdb",
        ),
    ];
    let tree = laptop();
    for (mounts, swaps, system) in cases {
        let disks = tree.snapshot(&mounts, &format!("{header}{swaps}")).disks();
        let found: Vec<_> = disks
            .iter()
            .filter(|info| info.system && !matches!(info.bus, Bus::Mapped | Bus::Loop))
            .map(|info| info.name.as_str())
            .collect();
        assert_eq!(found, [system], "{mounts}{swaps}");
    }
    for (place, system) in [
        ("/home/me", true),
        ("/home/me/card", false),
        ("/opt/x", false),
        ("/var/tmp/x", false),
        ("/variable", false),
        ("/mnt", false),
        ("/run/media/me/usr", false),
        ("/boot/firmware", true),
    ] {
        assert_eq!(is_system_place(Path::new(place)), system, "{place}");
    }
    let idle = tree
        .snapshot(&line("8:17", "/media/usr", "/dev/sdb1"), header)
        .disks();
    assert!(idle.iter().all(|info| !info.system));
}

#[test]
fn tells_which_disk_a_file_lies_on() {
    let tree = laptop();
    // LUKS made of the loop device whose file lies on the card, as of any other disk.
    let mapped = "devices/virtual/block";
    tree.add(
        &format!("{mapped}/dm-9"),
        "254:9",
        1 << 20,
        &[("dm/name", "vault")],
    );
    tree.hold(&format!("{mapped}/loop10"), "dm-9");
    let mounts = format!(
        "{MOUNTS}37 27 254:9 / /mnt/vault rw - ext4 /dev/mapper/vault rw\n\
         38 27 0:51 / /mnt/subvolume rw - btrfs /dev/sdb2 rw\n"
    );
    let snapshot = tree.snapshot(&mounts, SWAPS);
    for (disk, file, held) in [
        ("sdb", "/media/card/os.img", true),
        ("sdb", "/media/my card/os.img", true),
        ("sdb2", "/media/card/os.img", true),
        ("sdb1", "/media/card/os.img", false),
        ("sdb", "/media/cards/os.img", false),
        ("sdb", "/home/me/os.img", false),
        // By a folder of the card that is mounted elsewhere.
        ("sdb", "/mnt/bind/os.img", true),
        ("sdb", "/mnt/subvolume/os.img", true),
        // Through LVM on LUKS.
        ("nvme0n1", "/home/me/os.img", true),
        ("nvme0n1p2", "/home/me/os.img", true),
        ("nvme0n1p1", "/home/me/os.img", false),
        ("dm-0", "/home/me/os.img", true),
        ("dm-2", "/home/me/os.img", false),
        // On a loop device whose file lies on the card.
        ("sdb", "/mnt/inner/os.img", true),
        ("loop10", "/mnt/inner/os.img", true),
        ("nvme0n1", "/mnt/inner/os.img", false),
        ("sdb", "/mnt/vault/os.img", true),
        ("nvme0n1", "/mnt/vault/os.img", false),
        ("nothing", "/home/me/os.img", false),
    ] {
        let path = Path::new(file);
        assert_eq!(snapshot.holds(disk, path, None), held, "{disk} {file}");
        // A number of no disk, as btrfs has it, tells nothing.
        let number = Some((0, 50));
        assert_eq!(snapshot.holds(disk, path, number), held, "{disk} {file}");
    }
    // A mount that another one hides: the number tells.
    let hidden = Path::new("/home/me/os.img");
    assert!(snapshot.holds("sdb", hidden, Some((8, 18))));
    assert!(!snapshot.holds("nvme0n1", hidden, Some((8, 18))));
}

#[test]
fn a_raid_has_partitions_of_its_own() {
    let tree = Tree::new();
    let (disk, raid) = (
        "devices/x/ata1/host0/block/sda",
        "devices/virtual/block/md127",
    );
    tree.add(disk, "8:0", 1 << 30, &[]);
    tree.add(
        &format!("{disk}/sda1"),
        "8:1",
        1 << 29,
        &[("partition", "1")],
    );
    tree.hold(&format!("{disk}/sda1"), "md127");
    tree.add(raid, "9:127", 1 << 29, &[]);
    tree.add(
        &format!("{raid}/md127p1"),
        "259:5",
        1 << 28,
        &[("partition", "1")],
    );
    let mounts = "1 1 259:5 / /srv rw - ext4 /dev/md127p1 rw\n";
    let disks = tree.snapshot(mounts, "").disks();
    let sda = named(&disks, "sda");
    assert_eq!((sda.bus, sda.system), (Bus::Sata, false));
    assert_eq!(sda.volumes[0].mount_points, [PathBuf::from("/srv")]);
    assert_eq!(sda.volumes[0].in_use_by.as_deref(), Some("md127"));
    let disks = tree.snapshot(&mounts.replace("/srv", "/"), "").disks();
    assert!(named(&disks, "sda").system);
}

#[test]
fn hostile_trees_end() {
    let tree = Tree::new();
    let folder = "devices/virtual/block/dm-0";
    tree.add(
        folder,
        "254:0",
        0,
        &[
            ("size", "18446744073709551615"),
            ("queue/logical_block_size", "3"),
        ],
    );
    tree.hold(folder, "dm-0");
    tree.add(
        "devices/x/loop0",
        "7:0",
        512,
        &[("loop/backing_file", "/mnt/self.img")],
    );
    tree.add("devices/x/bad", "not numbers", 512, &[]);
    symlink("../../devices/gone", tree.root.path("class/block/gone")).unwrap();
    let snapshot = tree.snapshot("1 1 7:0 / /mnt rw - ext4 /dev/loop0 rw\n", "");
    let disks = snapshot.disks();
    assert_eq!(disks.len(), 2);
    assert_eq!((disks[0].size, disks[0].logical_block), (0, 512));
    assert!(!snapshot.holds("dm-0", Path::new("/mnt/x"), None));
}

#[test]
fn undoes_escapes() {
    for (text, plain) in [
        ("/a\\040b", "/a b"),
        ("/a\\134040", "/a\\040"),
        ("/a\\", "/a\\"),
        ("/a\\9", "/a\\9"),
        ("/ü\\011", "/ü\t"),
    ] {
        assert_eq!(unescape(text), plain);
    }
}
