//! Filesystems: a sound one is damaged in a few places, its checksums are mended, and what is then
//! accepted has to give images, and a growth, that are sound and hold the same files.

use pishrink::error::{Error, ErrorKind};
use pishrink::ext4::{Ext4, Growth, Image, Target, owner};
use pishrink::io::{Overlay, RangeSet, ReadAt, is_zero};

use super::base::{Base, bases};
use super::disk::{Disk, Input};
use super::{is_refusal, mend, tree};

/// The checksums stay as they are: what a card does by itself.
const UNMENDED: u8 = 1;
/// Grow it where it lies.
const GROW: u8 = 2;
/// Ask whose the bytes are.
const OWNERS: u8 = 4;
/// Take the bitmaps' word for everything.
const BITMAPS: u8 = 8;

pub fn ext4(data: &[u8]) {
    let Some(input) = Input::decode(data) else {
        return;
    };
    let base = &bases()[input.base % bases().len()];
    let mut disk = Disk::new(&base.bytes);
    let hit = input.damage(&mut disk, &base.places, &base.telling);
    if input.flags & UNMENDED == 0 {
        mend::mend(base, &mut disk, &hit);
    }
    judge(&mut disk, &input);
}

pub fn journal(data: &[u8]) {
    let Some(input) = Input::decode(data) else {
        return;
    };
    let dirty: Vec<&Base> = bases().iter().filter(|base| base.log.is_some()).collect();
    let base = dirty[input.base % dirty.len()];
    let mut disk = Disk::new(&base.bytes);
    let hit = input.damage(&mut disk, &base.log_places, &base.telling);
    if input.flags & UNMENDED == 0 {
        mend::mend(base, &mut disk, &hit);
    }
    judge(&mut disk, &input);
}

fn judge(disk: &mut Disk, input: &Input<'_>) {
    let amount = u64::from(input.amount);
    if input.flags & OWNERS != 0 {
        ask_owners(disk, amount);
    }
    if input.flags & BITMAPS != 0 {
        match Ext4::open_by_bitmaps(disk) {
            Ok(ext) => match ext.image(Target::Keep) {
                Ok(image) => rest_is_zero(&image, disk),
                Err(error) => is_refusal(&error),
            },
            Err(error) => is_refusal(&error),
        }
    }
    let grows = input.flags & GROW != 0;
    if grows {
        // As on a card: behind the filesystem there is anything.
        disk.set_len(disk.len() + amount * 512);
    }
    let ext = match Ext4::open(disk) {
        Ok(ext) => ext,
        Err(error) => return is_refusal(&error),
    };
    let minimum = ext.minimum_bytes().expect("what is there fits");
    assert!(minimum <= ext.total_bytes() && ext.used_bytes() <= ext.total_bytes());
    let in_the_way = ext.features_in_the_way();
    let resizable = in_the_way.is_empty();
    let checked = ["bigalloc", "shared_blocks", "meta_bg", "sparse_super2"];
    let is_checked = in_the_way
        .iter()
        .all(|name| checked.contains(&name.as_str()));
    if grows {
        match ext.grow(disk.len()) {
            Ok(growth) => grown(&growth, disk, usize::from(input.amount)),
            Err(error) => may_refuse(&error, true),
        }
        return;
    }
    let target = match (resizable, amount % 4) {
        (false, _) | (_, 2) => Target::Keep,
        (_, 0) => Target::Headroom(0),
        (_, 1) => Target::Headroom(amount * 64),
        _ => Target::Blocks(amount / 4),
    };
    match ext.image(target) {
        Ok(image) => {
            shrunk(&image, disk, resizable, is_checked);
            let is_least = target == Target::Headroom(0);
            assert!(!is_least || image.overlay.len() == minimum);
        }
        Err(error) => may_refuse(&error, matches!(target, Target::Blocks(_))),
    }
}

fn may_refuse(error: &Error, for_size: bool) {
    if !for_size || error.kind() != ErrorKind::NoSpace {
        is_refusal(error);
    }
}

fn shrunk(image: &Image, disk: &Disk, resizable: bool, is_checked: bool) {
    assert_eq!(image.overlay.len(), image.blocks * image.block_size);
    assert!(image.overlay.len() <= disk.len());
    rest_is_zero(image, disk);
    let view = image.overlay.over(disk);
    let again = Ext4::open(&view).expect("the image is sound");
    assert_eq!(again.findings().repairs(), [""; 0]);
    assert_eq!(again.recovery(), Default::default());
    assert_eq!(again.total_bytes(), image.overlay.len());
    assert_eq!(again.total_bytes() - again.used_bytes(), image.free_bytes);
    if resizable {
        assert!(again.minimum_bytes().expect("it fits") <= again.total_bytes());
    }
    if is_checked {
        tree::assert_same(disk, &view);
    }
}

fn grown(growth: &Growth, disk: &Disk, stop: usize) {
    assert!(growth.new_len <= disk.len() && growth.new_len >= growth.old_len);
    let flat = growth.steps.flat(disk.len());
    let view = flat.over(disk);
    let again = Ext4::open(&view).expect("what grew is sound");
    assert_eq!(again.findings().repairs(), [""; 0]);
    assert_eq!(again.total_bytes(), growth.new_len);
    tree::assert_same(disk, &view);
    // Interrupted, it may need e2fsck, but shows no other files.
    let count = growth.steps.iter().count().max(1);
    let some = growth.steps.iter().take(stop % count);
    let part = some.fold(Overlay::new(disk.len()), |part, step| part.then(step));
    let view = part.over(disk);
    if Ext4::open(&view).is_ok() {
        tree::assert_same(disk, &view);
    }
}

/// What a card need not hold is zeros.
fn rest_is_zero(image: &Image, disk: &Disk) {
    let view = image.overlay.over(disk);
    for gap in image.stored.gaps(0..view.len()) {
        let len = (gap.end - gap.start) as usize;
        let bytes = view.read_vec_at(gap.start, len).expect("it is inside");
        assert!(is_zero(&bytes), "free bytes {gap:?} are no zeros");
    }
}

fn ask_owners(disk: &Disk, amount: u64) {
    let mut asked = RangeSet::new();
    for i in 0..6 {
        let start = (amount * 1031 + i * 524_287) % disk.len();
        asked.insert(start..(start + 1 + amount % 5000).min(disk.len()));
    }
    match owner::owners(disk, &asked) {
        Ok(found) => {
            // Those that share attributes share their block.
            let mut start = 0;
            for (range, _) in found {
                assert!(range.start >= start && range.start < range.end);
                assert!(asked.intersects(range.clone()));
                start = range.start;
            }
        }
        Err(error) => is_refusal(&error),
    }
}
