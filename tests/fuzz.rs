//! The bodies of the fuzz targets over the kept inputs of testdata/fuzz (what fuzzing found, and
//! inputs that reach far), and over a few new damages each. Longer runs: scripts/fuzz.

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What scripts/fuzz allows as well.
const SECONDS: u64 = 20;
const MEMORY_KIB: u64 = 1 << 20;

/// New inputs for each target: a second or two of each.
const NEW: u32 = 300;

/// Runs an input's body in a thread of its own: a hang must not be this test's.
fn run(target: &'static str, name: &str, data: Vec<u8>) {
    let (done, finished) = mpsc::channel();
    let worker = thread::spawn(move || {
        bodies::run(target, &data);
        let _ = done.send(());
    });
    match finished.recv_timeout(Duration::from_secs(SECONDS)) {
        Err(mpsc::RecvTimeoutError::Timeout) => {
            panic!("{target}: {name} takes more than {SECONDS} s");
        }
        _ => assert!(worker.join().is_ok(), "{target}: {name} breaks a promise"),
    }
}

/// The most memory that this process ever had.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|text| text.parse().ok())
        .expect("VmHWM has a number")
}

fn seeds(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/fuzz")
        .join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no kept inputs");
    paths
}

#[test]
fn kept_inputs_break_no_promise() {
    for &(target, _) in bodies::TARGETS {
        for path in seeds(target) {
            run(
                target,
                &path.display().to_string(),
                fs::read(&path).unwrap(),
            );
            let peak = peak_kib();
            assert!(peak < MEMORY_KIB, "{peak} KiB after {}", path.display());
        }
    }
}

/// Every target has its program, and every folder its target.
#[test]
fn targets_are_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        let name = |entry: fs::DirEntry| entry.path().file_stem()?.to_str().map(str::to_owned);
        let mut names: Vec<_> = entries.filter_map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    };
    let targets: Vec<_> = bodies::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names("fuzz/fuzz_targets"), targets);
    let mut folders = names("testdata/fuzz");
    folders.retain(|name| name != "bases");
    assert_eq!(folders, targets);
    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
    for target in targets {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")));
    }
}

fn random(state: &mut u64, below: usize) -> usize {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*state >> 33) as usize % below
}

/// A kept input with some bytes changed, or parts of two.
fn vary(state: &mut u64, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random(state, seeds.len())].clone();
    if random(state, 3) == 0 {
        let other = &seeds[random(state, seeds.len())];
        let cut = random(state, data.len().min(other.len()).max(1));
        data.truncate(cut);
        data.extend_from_slice(&other[cut.min(other.len())..]);
    }
    for _ in 0..1 + random(state, 6) {
        if data.is_empty() || random(state, 8) == 0 {
            data.extend((0..16).map(|_| random(state, 256) as u8));
        }
        let at = random(state, data.len());
        match random(state, 4) {
            0 => data[at] ^= 1 << random(state, 8),
            1 => data[at] = data[at].wrapping_add(1),
            2 => data[at] = [0, 1, 0x7F, 0x80, 0xFF][random(state, 5)],
            _ => data[at] = random(state, 256) as u8,
        }
    }
    data
}

#[test]
fn new_inputs_break_no_promise() {
    for &(target, _) in bodies::TARGETS {
        let seeds: Vec<_> = seeds(target).iter().map(|p| fs::read(p).unwrap()).collect();
        let mut state = 7;
        for round in 0..NEW {
            let data = vary(&mut state, &seeds);
            let text: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
            let name = format!("input {round}, {}", &text[..text.len().min(400)]);
            run(target, &name, data);
        }
        let peak = peak_kib();
        assert!(peak < MEMORY_KIB, "{peak} KiB after {target}");
    }
}
