//! Round trips through our code and the system's tools, in both directions; damage of all kinds.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Codec, Decoder, Encoder};
use crate::error::{ErrorKind, Result};
use crate::scratch::Scratch;

fn put(scratch: &Scratch, name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch.path(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Reproducible numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Bytes like a card's: text, noise and zeros.
fn image(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8192);
    while bytes.len() < len {
        match random.below(3) {
            0 => bytes.resize(bytes.len() + random.below(8192), 0),
            1 => (0..random.below(600)).for_each(|_| bytes.extend(random.next().to_le_bytes())),
            _ => (0..random.below(300)).for_each(|_| {
                writeln!(bytes, "line {} of a file", random.below(500)).unwrap();
            }),
        }
    }
    bytes.truncate(len);
    bytes
}

/// Runs a tool with `input`, and gives its output if it succeeds.
fn tool(program: &str, args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed as a judge: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output.status.success().then_some(output.stdout)
}

fn pack(codec: Codec, level: Option<u32>, threads: usize, bytes: &[u8]) -> Vec<u8> {
    let mut random = Random(bytes.len() as u64);
    let mut encoder = Encoder::new(codec, level, threads, Vec::new()).unwrap();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at((1 + random.below(300_000)).min(rest.len()));
        encoder.write_all(now).unwrap();
        rest = later;
    }
    encoder.finish().unwrap()
}

/// Gives its bytes in pieces of random length, as a pipe does.
struct Dribble(Cursor<Vec<u8>>, Random);

impl Read for Dribble {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let most = (1 + self.1.below(70_000)).min(buf.len());
        self.0.read(&mut buf[..most])
    }
}

fn unpack_with(mut decoder: Decoder) -> Result<Vec<u8>> {
    let mut random = Random(5);
    let mut all = Vec::new();
    loop {
        let mut buf = vec![0; 1 + random.below(200_000)];
        let count = decoder.read_full(&mut buf)?;
        all.extend_from_slice(&buf[..count]);
        if count < buf.len() {
            assert_eq!(decoder.bytes_out(), all.len() as u64);
            return Ok(all);
        }
    }
}

fn unpack_stream(packed: &[u8]) -> Result<Vec<u8>> {
    let dribble = Dribble(Cursor::new(packed.to_vec()), Random(packed.len() as u64));
    unpack_with(Decoder::new(dribble)?)
}

fn unpack_file(packed: &[u8]) -> Result<Vec<u8>> {
    unpack_with(Decoder::seekable(Cursor::new(packed.to_vec()))?)
}

/// The image in every format, as written by others.
fn packed_by_tools(bytes: &[u8]) -> Vec<(&'static str, Codec, Vec<u8>)> {
    let (one, two) = bytes.split_at(bytes.len() / 3);
    let by = |program, args: &[&str], input| tool(program, args, input).expect(program);
    let xz_blocks = by("xz", &["-T2", "-1", "--block-size=100000"], bytes);
    let scratch = Scratch::new("zip");
    let path = put(&scratch, "card image.img", bytes);
    let path = path.to_str().unwrap();
    let mut multi_xz = by("xz", &["-0"], one);
    multi_xz.extend([0; 8]);
    multi_xz.extend(by("xz", &["-2", "--check=sha256"], two));
    multi_xz.extend([0; 4]);
    let join = |program, args: &[&str]| [by(program, args, one), by(program, args, two)].concat();
    let python_zip = "import sys,zipfile; d=sys.stdin.buffer.read(); \
        z=zipfile.ZipFile(sys.stdout.buffer,'w',zipfile.ZIP_DEFLATED); z.writestr('__MACOSX/._x',b'n'*99); z.writestr('a/README.TXT',b'n'*99); \
        z.writestr('dir/',b''); z.writestr('dir/x.img',d); z.close()";
    let python_gz =
        "import sys,gzip; sys.stdout.buffer.write(gzip.compress(sys.stdin.buffer.read(),5))";
    vec![
        ("gzip", Codec::Gzip, by("gzip", &["-c"], bytes)),
        ("pigz", Codec::Gzip, by("pigz", &["-c"], bytes)),
        (
            "python gzip",
            Codec::Gzip,
            by("python3", &["-c", python_gz], bytes),
        ),
        ("gzip members", Codec::Gzip, join("gzip", &["-c"])),
        (
            "gzip padded",
            Codec::Gzip,
            [by("gzip", &["-c"], bytes), vec![0; 700]].concat(),
        ),
        ("xz", Codec::Xz, by("xz", &["-1"], bytes)),
        ("xz blocks", Codec::Xz, xz_blocks),
        ("xz streams", Codec::Xz, multi_xz),
        (
            "xz crc32",
            Codec::Xz,
            by("xz", &["-1", "--check=crc32"], bytes),
        ),
        ("zstd", Codec::Zstd, by("zstd", &["-c"], bytes)),
        (
            "zstd long",
            Codec::Zstd,
            by("zstd", &["-c", "--long=27", "-1"], bytes),
        ),
        ("zstd frames", Codec::Zstd, join("zstd", &["-c"])),
        ("bzip2", Codec::Bzip2, by("bzip2", &["-c"], bytes)),
        ("bzip2 streams", Codec::Bzip2, join("bzip2", &["-c"])),
        ("zip", Codec::Zip, by("zip", &["-j", "-q", "-", path], b"")),
        (
            "zip from stdin",
            Codec::Zip,
            by("zip", &["-q", "-", "-"], bytes),
        ),
        (
            "zip by python",
            Codec::Zip,
            by("python3", &["-c", python_zip], bytes),
        ),
    ]
}

#[test]
fn reads_what_others_write() {
    for len in [1, 4096, 3_000_000] {
        let bytes = image(len, 1);
        for (name, codec, packed) in packed_by_tools(&bytes) {
            assert_eq!(Codec::detect(&packed), codec, "{name}");
            assert!(
                unpack_stream(&packed).unwrap() == bytes,
                "{name}, {len} bytes"
            );
            assert!(
                unpack_file(&packed).unwrap() == bytes,
                "{name}, {len} bytes"
            );
        }
    }
}

#[test]
fn others_read_what_it_writes() {
    for len in [0, 1, 65_536, 524_288, 524_289, 2_500_000] {
        let bytes = image(len, 2);
        for (codec, program) in [
            (Codec::Gzip, "gzip"),
            (Codec::Xz, "xz"),
            (Codec::Zstd, "zstd"),
        ] {
            for threads in [1, 2, 5] {
                for level in [*codec.levels().start(), codec.default_level()] {
                    let packed = pack(codec, Some(level), threads, &bytes);
                    let unpacked = tool(program, &["-dc"], &packed);
                    assert!(
                        unpacked.as_deref() == Some(&bytes),
                        "{program} {len} {level}"
                    );
                    assert!(tool(program, &["-t"], &packed).is_some());
                    assert!(
                        unpack_stream(&packed).unwrap() == bytes,
                        "{codec} {len} {level}"
                    );
                }
            }
        }
        assert_eq!(pack(Codec::Raw, None, 0, &bytes), bytes);
    }
}

#[test]
fn gzip_is_one_member() {
    let bytes = image(2_500_000, 3);
    let packed = pack(Codec::Gzip, None, 3, &bytes);
    let mut first = Vec::new();
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_end(&mut first)
        .unwrap();
    assert!(first == bytes);
    let python = "import sys,zlib; d=zlib.decompressobj(31); \
        sys.stdout.buffer.write(d.decompress(sys.stdin.buffer.read())); assert d.eof and not d.unused_data";
    assert!(tool("python3", &["-c", python], &packed).unwrap() == bytes);
    assert_eq!(
        packed,
        pack(Codec::Gzip, None, 1, &bytes),
        "threads must not show"
    );
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = image(900_000, 4);
    for (name, _, packed) in packed_by_tools(&bytes) {
        let cuts = (1..16).map(|part| packed.len() * part / 16);
        for cut in cuts.chain([packed.len() - 1, Codec::DETECT_LEN]) {
            let cut_off = &packed[..cut];
            for outcome in [unpack_stream(cut_off), unpack_file(cut_off)] {
                match outcome {
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unsound, "{name} at {cut}: {error}");
                    }
                    // Where members are joined, a part of them is a sound file; zeros can be fewer.
                    Ok(short) => assert!(
                        bytes.starts_with(&short) && ["gzip padded", "xz streams"].contains(&name),
                        "{name} cut at {cut} was accepted with {} bytes",
                        short.len()
                    ),
                }
            }
        }
    }
}

#[test]
fn flipped_bits_are_found() {
    let bytes = image(400_000, 5);
    let mut random = Random(6);
    for (name, codec, packed) in packed_by_tools(&bytes) {
        for _ in 0..40 {
            let mut damaged = packed.clone();
            // Names, times and comments in headers carry no image, and no check.
            let at = 64.min(damaged.len() / 4) + random.below(damaged.len() * 3 / 4 - 64);
            damaged[at] ^= 1 << random.below(8);
            match unpack_stream(&damaged) {
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Unsound | ErrorKind::Unsupported),
                    "{name}: {error}"
                ),
                // A flip in a field that means nothing for the contents.
                Ok(same) => assert!(same == bytes, "{name}: {codec} flip at {at} was not found"),
            }
        }
    }
}

#[test]
fn garbage_at_the_end_is_an_error() {
    let bytes = image(100_000, 7);
    for (name, _, mut packed) in packed_by_tools(&bytes) {
        let whole = packed.len();
        packed.extend(b"more");
        if Codec::detect(&packed) == Codec::Gzip {
            // As gzip does, which says so: the CRC and the length before it are right.
            for behind in [
                &b"m"[..],
                b"more",
                b"\0\0\0more",
                b"\x1f",
                b"{\"version\": 1}\n",
            ] {
                packed.truncate(whole);
                packed.extend(behind);
                let mut decoder = Decoder::new(Cursor::new(packed.clone())).unwrap();
                let mut unpacked = Vec::new();
                decoder.read_to_end(&mut unpacked).unwrap();
                assert!(unpacked == bytes, "{name}");
                let ignored = behind.iter().skip_while(|&&byte| byte == 0).count();
                let note = decoder.note().expect("it is told");
                assert!(note.starts_with(&format!("{ignored} bytes")), "{note}");
                assert!(unpack_file(&packed).unwrap() == bytes, "{name}");
            }
            // A further member whose first bytes are damaged is not passed over.
            packed.truncate(whole);
            packed.extend_from_within(..);
            packed[whole + 1] ^= 0x10;
        }
        let error = unpack_stream(&packed).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsound, "{name}: {error}");
        assert!(error.to_string().contains("byte"), "{name}: {error}");
    }
    let mut padded = pack(Codec::Xz, None, 1, &bytes);
    padded.extend([0; 6]);
    assert!(unpack_stream(&padded).is_err(), "xz padding comes in fours");
}

#[test]
fn an_error_stays_and_says_where() {
    let bytes = image(3_000_000, 8);
    let packed = tool("gzip", &["-c"], &bytes).unwrap();
    let mut decoder = Decoder::new(Cursor::new(packed[..packed.len() / 2].to_vec())).unwrap();
    let mut sink = Vec::new();
    let error = decoder.read_to_end(&mut sink).unwrap_err();
    let inner = error.downcast::<crate::error::Error>().unwrap();
    let place = format!("gzip image ends early, after byte {}", packed.len() / 2);
    assert!(inner.to_string().contains(&place), "{inner}");
    assert!(
        inner
            .to_string()
            .contains(&format!("byte {} unpacked", sink.len()))
    );
    assert!(decoder.read(&mut [0; 10]).is_err());
}

#[test]
fn sizes_are_known_where_the_format_has_them() {
    let bytes = image(1_234_567, 9);
    for (name, codec, packed) in packed_by_tools(&bytes) {
        let hint = Decoder::seekable(Cursor::new(packed)).unwrap().size_hint();
        let expected = match codec {
            Codec::Xz | Codec::Zip => Some(1_234_567),
            _ => hint.filter(|_| codec == Codec::Zstd),
        };
        assert_eq!(hint, expected, "{name}");
    }
    let len = Some(bytes.len() as u64);
    let mut encoder = Encoder::with_len(Codec::Zstd, None, 2, len, Vec::new()).unwrap();
    encoder.write_all(&bytes).unwrap();
    let packed = encoder.finish().unwrap();
    assert_eq!(Decoder::new(Cursor::new(packed)).unwrap().size_hint(), len);
    let raw = Decoder::seekable(Cursor::new(bytes.clone())).unwrap();
    assert_eq!((raw.codec(), raw.size_hint()), (Codec::Raw, len));
    assert!(unpack_with(raw).unwrap() == bytes);
}

#[test]
fn a_zip_with_two_files_is_refused_by_name() {
    let scratch = Scratch::new("two");
    let image = put(&scratch, "one.img", &image(50_000, 10));
    let other = put(&scratch, "two.bin", b"read me");
    let paths = [image, other].map(|path| path.to_str().unwrap().to_owned());
    let packed = tool("zip", &["-j", "-q", "-", &paths[0], &paths[1]], b"").unwrap();
    for outcome in [unpack_stream(&packed), unpack_file(&packed)] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.to_string().contains("\"one.img\", \"two.bin\""),
            "{error}"
        );
    }
    let locked = tool("zip", &["-j", "-q", "-P", "secret", "-", &paths[0]], b"").unwrap();
    for outcome in [unpack_stream(&locked), unpack_file(&locked)] {
        assert!(outcome.unwrap_err().to_string().contains("encrypted"));
    }
}

#[test]
fn a_zip_whose_file_starts_past_the_end_is_damaged() {
    let scratch = Scratch::new("past");
    let file = put(&scratch, "one.img", &image(5_000, 12));
    let mut packed = tool("zip", &["-j", "-q", "-", file.to_str().unwrap()], b"").unwrap();
    // The length of the local header's extra field.
    packed[29] = 0xB9;
    let error = unpack_file(&packed).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsound);
    assert!(error.to_string().contains("local header"), "{error}");
}

#[test]
fn an_unfinished_output_is_no_sound_file() {
    /// A sink that outlives its encoder.
    #[derive(Clone, Default)]
    struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let bytes = image(6_000_000, 11);
    for codec in [Codec::Gzip, Codec::Xz, Codec::Zstd] {
        let sink = Shared::default();
        let mut encoder = Encoder::new(codec, Some(1), 2, sink.clone()).unwrap();
        encoder.write_all(&bytes).unwrap();
        drop(encoder);
        let packed = sink.0.lock().unwrap().clone();
        if packed.len() > Codec::DETECT_LEN {
            assert!(unpack_stream(&packed).is_err(), "{codec}");
        }
    }
}

#[test]
fn a_failing_sink_is_reported() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(buf.len())
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::StorageFull))?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let bytes = image(3_000_000, 12);
    for codec in [Codec::Raw, Codec::Gzip, Codec::Xz, Codec::Zstd] {
        let mut encoder = Encoder::new(codec, None, 2, Full(20_000)).unwrap();
        let outcome = match encoder.write_all(&bytes) {
            Err(error) => Err(crate::error::Error::io("writing", error)),
            Ok(()) => encoder.finish().map(drop),
        };
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NoSpace, "{codec}");
    }
}

#[test]
fn both_may_move_to_other_threads() {
    fn assert_send<T: Send>() {}
    assert_send::<Decoder>();
    assert_send::<Encoder<fs::File>>();
}

#[test]
fn names_and_levels() {
    for codec in Codec::ALL {
        assert_eq!(Codec::from_name(codec.name()), Some(codec));
        let path = format!("card.IMG.{}", codec.extension());
        assert_eq!(Codec::from_extension(Path::new(&path)), Some(codec));
        assert!(codec.levels().contains(&codec.default_level()));
        let beyond = Encoder::new(codec, Some(codec.levels().end() + 1), 1, Vec::new());
        assert_eq!(beyond.err().unwrap().kind(), ErrorKind::Usage);
    }
    assert_eq!(Codec::from_extension("card.7z"), None);
    assert_eq!(Codec::detect(b""), Codec::Raw);
    assert_eq!(unpack_stream(b"").unwrap(), b"");
    assert_eq!(unpack_stream(b"\xeb\x58\x90").unwrap(), b"\xeb\x58\x90");
    let error = unpack_stream(b"7z\xbc\xaf\x27\x1c\0\x04 and so on").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// What 7-Zip and Windows make of large images; the archives are python's, or built here around what
/// the format's own tool packs.
#[test]
fn every_common_packing_method_of_zip_is_read() {
    let scratch = Scratch::new("methods");
    let bytes = image(300_000, 21);
    let script = "import sys, zipfile
method = {'bzip2': zipfile.ZIP_BZIP2, 'lzma': zipfile.ZIP_LZMA}[sys.argv[1]]
with zipfile.ZipFile(sys.argv[2], 'w', method) as z: z.writestr('x.img', sys.stdin.buffer.read())";
    for method in ["bzip2", "lzma"] {
        let path = scratch.path(method);
        let words = ["-c", script, method, path.to_str().unwrap()];
        tool("python3", &words, &bytes).expect("python3 has zipfile");
        let packed = std::fs::read(&path).unwrap();
        assert!(unpack_file(&packed).unwrap() == bytes, "{method}");
        assert!(unpack_stream(&packed).unwrap() == bytes, "{method}");
        let mut damaged = packed;
        let middle = damaged.len() / 2;
        damaged[middle] ^= 4;
        assert!(unpack_file(&damaged).is_err(), "{method}");
    }
    for (method, program) in [(93, "zstd"), (95, "xz")] {
        let packed = tool(program, &["-c"], &bytes).unwrap();
        let archive = archive_of(method, &packed, &bytes);
        assert!(unpack_file(&archive).unwrap() == bytes, "{program}");
        assert!(unpack_stream(&archive).unwrap() == bytes, "{program}");
    }
    // Deflate64: stored blocks are the same as deflate's; a match of its own code 285, with 16 more bits.
    let mut packed = vec![0, 5, 0, 0xfa, 0xff];
    packed.extend(b"hello");
    // The last block, fixed codes: literal 'x', length code 285 + 16 bits (1000 - 3), distance 1, end.
    let mut bits = Bits::default();
    bits.put(1, 1);
    bits.put(1, 2);
    bits.code(0x30 + u32::from(b'x'), 8);
    bits.code(0b1100_0101, 8);
    bits.put(1000 - 3, 16);
    bits.code(0, 5);
    bits.code(0, 7);
    packed.extend(bits.bytes());
    let unpacked = [&b"hello"[..], &vec![b'x'; 1001]].concat();
    let archive = archive_of(9, &packed, &unpacked);
    assert!(unpack_file(&archive).unwrap() == unpacked);
    let error = unpack_file(&archive_of(98, b"?", b"?")).unwrap_err();
    assert!(error.to_string().contains("unpack it"), "{error}");
}

/// Bits as deflate packs them, the lowest first; codes the other way round.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        self.0.extend((0..count).map(|bit| value >> bit & 1 == 1));
    }

    fn code(&mut self, value: u32, count: u32) {
        self.0
            .extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
    }

    fn bytes(&self) -> Vec<u8> {
        let byte = |bits: &[bool]| {
            let bits = bits.iter().enumerate();
            bits.map(|(at, &bit)| u8::from(bit) << at).sum()
        };
        self.0.chunks(8).map(byte).collect()
    }
}

/// Makes an archive of one file by hand.
fn archive_of(method: u16, packed: &[u8], unpacked: &[u8]) -> Vec<u8> {
    let crc = crc32fast::hash(unpacked).to_le_bytes();
    let lens = [packed.len() as u32, unpacked.len() as u32].map(u32::to_le_bytes);
    let fields = [
        &[20, 0, 0, 0][..],
        &method.to_le_bytes(),
        &[0; 4],
        &crc,
        &lens[0],
        &lens[1],
        &[5, 0, 0, 0],
    ]
    .concat();
    let local = [&b"PK\x03\x04"[..], &fields, b"x.img", packed].concat();
    let central = [&b"PK\x01\x02\x14\0"[..], &fields, &[0; 14], b"x.img"].concat();
    let place = (local.len() as u32).to_le_bytes();
    let end = [
        &b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..],
        &(central.len() as u32).to_le_bytes(),
        &place,
        &[0, 0],
    ]
    .concat();
    [local, central, end].concat()
}

/// Matches that reach back farther than the zstd program follows by default.
#[test]
fn long_windows_of_zstd_are_followed() {
    let bytes = image(1 << 20, 22);
    // From a pipe, so the frame has no length, and states its window of 256 MiB.
    let packed = tool("zstd", &["--long=28", "-1", "-c"], &bytes).unwrap();
    assert_eq!(packed[5] >> 3, 28 - 10, "the window descriptor");
    assert!(unpack_stream(&packed).unwrap() == bytes);
}

#[test]
fn noise_behind_a_magic_neither_hangs_nor_panics() {
    let bytes = image(60_000, 13);
    let mut random = Random(14);
    for (name, _, packed) in packed_by_tools(&bytes) {
        for _ in 0..150 {
            let mut damaged = packed.clone();
            for _ in 0..1 + random.below(20) {
                let near = if random.below(2) == 0 {
                    200
                } else {
                    damaged.len()
                };
                let at = random.below(near.min(damaged.len()));
                damaged[at] = random.next() as u8;
            }
            for outcome in [unpack_stream(&damaged), unpack_file(&damaged)] {
                if let Err(error) = outcome {
                    let kind = error.kind();
                    let known = matches!(kind, ErrorKind::Unsound | ErrorKind::Unsupported);
                    assert!(known, "{name}: {error}");
                }
            }
        }
    }
}

#[test]
fn archives_of_millions_of_files_are_not_listed() {
    let script = "import sys,zipfile; z=zipfile.ZipFile(sys.stdout.buffer,'w'); \
        [z.writestr('%060d' % i, '') for i in range(int(sys.argv[1]))]; z.close()";
    for (count, kind) in [
        ("100", ErrorKind::Unsupported),
        ("2000", ErrorKind::Unsound),
    ] {
        let archive = tool("python3", &["-c", script, count], b"").expect("python3");
        let error = Decoder::seekable(Cursor::new(archive)).err().unwrap();
        assert_eq!(error.kind(), kind, "{}", error.one_line());
    }
}
