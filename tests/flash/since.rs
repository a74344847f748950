//! `pishrink verify IMAGE CARD` of a card that a system has mounted since: told from a card that is wrong.

use std::fs;
use std::path::Path;

use super::tools::*;

/// A FAT32 with files in it, at byte 1 MiB of an image of 128 MiB, and ext4 behind it.
fn image(scratch: &Scratch, name: &str) -> std::path::PathBuf {
    let image = scratch.path(name);
    fs::write(scratch.path("kernel8.img"), noise(7, 300_000)).unwrap();
    fs::write(scratch.path("overlay.dtbo"), noise(8, 3000)).unwrap();
    shell(&format!(
        "truncate -s 128M {image}
         printf 'label: dos\\nstart=2048,size=131072,type=c\\nstart=133120,type=83\\n' | sfdisk -q {image}
         mkfs.vfat -F 32 -s 1 -n BOOT --offset 2048 {image} 65536 >/dev/null
         export MTOOLS_SKIP_CHECK=1
         mmd -i {image}@@1M ::/overlays
         mcopy -i {image}@@1M {folder}/kernel8.img ::/
         mcopy -i {image}@@1M {folder}/overlay.dtbo ::/overlays/",
        image = text(&image),
        folder = text(scratch.path("x").parent().unwrap()),
    ));
    put_ext(scratch, &image, ROOT, 63 * MIB, "");
    image
}

const ROOT: u64 = 65 * MIB;
const FAT: u64 = MIB;

/// What verify says of a card: its exit code and differing bytes, and what was put down to mounting.
fn verdict(image: &Path, card: &Path) -> (i32, bool, bool) {
    let (code, told) = json(&["verify", text(image), text(card)]);
    let some = |name: &str| !told[name].as_array().unwrap().is_empty();
    (code, some("differences"), some("mounted_since"))
}

/// Changes what is in a card's FAT with mtools.
fn fat(card: &Path, commands: &str) {
    shell(&format!(
        "export MTOOLS_SKIP_CHECK=1; disk={}@@1M; {commands}",
        text(card)
    ));
}

fn flip(card: &Path, at: u64) {
    let byte = read(card, at, 1)[0] ^ 4;
    let file = fs::OpenOptions::new().write(true).open(card).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte], at).unwrap();
}

/// Finds where a file's first bytes lie.
fn place_of(card: &Path, bytes: &[u8]) -> u64 {
    let whole = fs::read(card).unwrap();
    let found = whole.windows(64).position(|window| window == &bytes[..64]);
    found.unwrap() as u64
}

#[test]
fn a_card_that_was_mounted_is_as_written_and_a_changed_one_is_not() {
    let scratch = Scratch::new("since");
    let image = image(&scratch, "x.img");
    let flashed = used_card(&scratch, "flashed", 256 * MIB);
    flash(text(&image), &flashed, &[]);
    assert_eq!(verdict(&image, &flashed), (0, false, false));
    let card = scratch.path("card");
    let fresh = || fs::copy(&flashed, &card).unwrap();
    // What macOS and Windows leave, enough of it to make the root directory longer.
    let systems = "
        mmd -i $disk ::/.fseventsd '::/System Volume Information' ::/.Spotlight-V100
        head -c 20000 /dev/urandom | mcopy -i $disk - ::/.fseventsd/fseventsd-uuid
        head -c 76 /dev/urandom | mcopy -i $disk - '::/System Volume Information/IndexerVolumeGuid'
        head -c 4096 /dev/urandom | mcopy -i $disk - ::/._kernel8.img
        head -c 4096 /dev/urandom | mcopy -i $disk - ::/overlays/.DS_Store";
    fresh();
    fat(&card, systems);
    // Dirty marks, in the boot sector and in the FAT.
    flip(&card, FAT + 65);
    flip(&card, FAT + 32 * 512 + 7);
    assert_eq!(verdict(&image, &card), (7, false, true));
    // All that, and a bit of a file.
    let kernel = place_of(&flashed, &noise(7, 300_000));
    flip(&card, kernel + 5000);
    assert_eq!(verdict(&image, &card), (4, true, true));
    flip(&card, kernel + 5000);
    // All that, and a bit of a file's chain in the FAT.
    let cluster = (kernel - data_start(&card)) / 512 + 2;
    flip(&card, FAT + 32 * 512 + cluster * 4);
    assert_eq!(verdict(&image, &card).0, 4);
    // The user's own changes are none of a system.
    for own in [
        "echo x | mcopy -i $disk - ::/ssh",
        "echo x | mcopy -o -i $disk - ::/kernel8.img",
        "mdel -i $disk ::/kernel8.img",
        "mmd -i $disk ::/mine",
    ] {
        fresh();
        fat(&card, &format!("{systems}\n{own}"));
        assert_eq!(verdict(&image, &card).0, 4, "{own}");
    }
    // One bit anywhere, and no sign of a system.
    for at in [
        kernel,
        FAT + 65 * 512 + 3,
        FAT + 3,
        ROOT + 1024 + 0x20,
        place_of(&flashed, &noise(1, 3 * MIB)) + 9,
    ] {
        fresh();
        flip(&card, at);
        assert_eq!(verdict(&image, &card).0, 4, "{at}");
    }
}

/// Where cluster 2 begins.
fn data_start(card: &Path) -> u64 {
    let boot = read(card, FAT, 512);
    let fat_sectors = u32::from_le_bytes(boot[36..40].try_into().unwrap());
    FAT + (32 + 2 * u64::from(fat_sectors)) * 512
}

#[test]
fn a_root_filesystem_that_the_kernel_mounted_is_as_written() {
    let scratch = Scratch::new("since-ext");
    let image = image(&scratch, "x.img");
    let card = used_card(&scratch, "card", 256 * MIB);
    flash(text(&image), &card, &[]);
    let place = scratch.path("mount");
    fs::create_dir(&place).unwrap();
    let mounted = |work: &str| {
        let device = Loop::attach(&card);
        device.show_partitions();
        shell(&format!(
            "mount -o strictatime {device}p2 {place}; trap 'umount {place}' EXIT; cd {place}; {work}; cd /",
            device = text(&device.0),
            place = text(&place)
        ));
    };
    mounted("cat hello folder/noise >/dev/null; ls -lR >/dev/null; sync; sleep 1");
    assert_eq!(verdict(&image, &card), (7, false, true));
    mounted("echo mine >hello");
    assert_eq!(verdict(&image, &card).0, 4);
}
