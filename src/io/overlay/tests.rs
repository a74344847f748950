use super::*;
use crate::io::memory::MemoryDisk;
use crate::random::random;

fn read(overlay: &Overlay, base: &MemoryDisk) -> Vec<u8> {
    overlay
        .over(base)
        .read_vec_at(0, overlay.len() as usize)
        .unwrap()
}

fn scribble(state: &mut u64, overlay: &mut Overlay, base: &[u8], model: &mut [u8]) {
    let len = overlay.len();
    for _ in 0..20 {
        let start = random(state, len);
        let count = random(state, len - start + 1).min(9);
        let range = start as usize..(start + count) as usize;
        match random(state, 4) {
            3 => {
                let from = random(state, base.len() as u64 - count + 1);
                let old = &base[from as usize..(from + count) as usize];
                let mut new = old.to_vec();
                for _ in 0..count / 3 {
                    new[random(state, count) as usize] = random(state, 256) as u8;
                }
                overlay.set_patched(start, count, from, Edits::between(old, &new));
                model[range].copy_from_slice(&new);
            }
            0 => {
                overlay.set_zero(start..start + count);
                model[range].fill(0);
            }
            1 => {
                let bytes: Vec<u8> = (0..count).map(|_| random(state, 256) as u8).collect();
                model[range].copy_from_slice(&bytes);
                overlay.set_bytes(start, bytes);
            }
            _ => {
                let from = random(state, base.len() as u64 - count + 1);
                overlay.set_base(start, count, from);
                let from = from as usize;
                model[range].copy_from_slice(&base[from..from + count as usize]);
            }
        }
    }
}

#[test]
fn reads_as_a_flat_copy_would() {
    let mut state = 1;
    for _ in 0..300 {
        let base: Vec<u8> = (0..80).map(|_| random(&mut state, 256) as u8).collect();
        let disk = MemoryDisk::from(base.clone());
        let mut lower = Overlay::new(64);
        let mut model = base[..64].to_vec();
        scribble(&mut state, &mut lower, &base, &mut model);
        assert_eq!(read(&lower, &disk), model);
        let mut upper = Overlay::new(60);
        let below = model.clone();
        let mut upper_model = model[..60].to_vec();
        scribble(&mut state, &mut upper, &below, &mut upper_model);
        assert_eq!(read(&lower.then(&upper), &disk), upper_model);
        let lifted = lower.rebase(8, 16, 100);
        let wide = MemoryDisk::from([vec![9; 16], base.clone(), vec![9; 60]].concat());
        assert_eq!(&read(&lifted, &wide)[8..72], model);
        for base_offset in [16, 8] {
            let lifted = lower.rebase(8, base_offset, 100);
            let (mut merged, mut placed) = (Overlay::new(100), Overlay::new(100));
            scribble(&mut state, &mut merged, &base, &mut [0; 100]);
            placed.merge(&merged);
            merged.merge(&lifted);
            placed.place(lower.clone(), 8, base_offset);
            assert_eq!(read(&placed, &wide), read(&merged, &wide));
        }
        for lower in [lower, Overlay::new(60), Overlay::new(64), Overlay::new(40)] {
            let flat = upper.clone().onto(&lower);
            assert_eq!(read(&flat, &disk), read(&lower.then(&upper), &disk));
        }
    }
}

#[test]
fn commit_refuses_moves_that_eat_each_other() {
    let disk = MemoryDisk::from((0..64).collect::<Vec<u8>>());
    let mut overlay = Overlay::new(64);
    // Upwards onto the source of a move downwards, which comes later.
    overlay.set_base(30, 10, 0);
    overlay.set_base(10, 10, 30);
    let refused = overlay.commit(&disk, &mut |_, _| Ok(()));
    assert_eq!(
        refused.unwrap_err().kind(),
        crate::error::ErrorKind::Internal
    );
    assert_eq!(disk.to_vec(), (0..64).collect::<Vec<u8>>());
}

#[test]
fn commit_gives_what_reading_gives() {
    let mut state = 5;
    for round in 0..100 {
        let base: Vec<u8> = (0..64).map(|_| random(&mut state, 256) as u8).collect();
        let mut overlay = Overlay::new(64);
        // One move, as a partition is moved; the rest from memory.
        let (from, to) = (random(&mut state, 40), random(&mut state, 40));
        overlay.set_base(to, 20, from);
        overlay.set_bytes(0, vec![1; (round % 7) as usize + 1]);
        // Changes of bytes that the move goes over.
        let (at, under) = (random(&mut state, 50), to + random(&mut state, 14));
        let old = &base[under as usize..under as usize + 6];
        overlay.set_patched(
            at,
            6,
            under,
            Edits::between(old, &[8, old[1], 8, old[3], 8, 8]),
        );
        overlay.set_zero(60..64);
        let disk = MemoryDisk::from(base);
        let expected = read(&overlay, &disk);
        overlay.commit(&disk, &mut |_, _| Ok(())).unwrap();
        assert_eq!(disk.to_vec(), expected);
    }
}
