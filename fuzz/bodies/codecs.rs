//! Packed images and block maps.

use std::io::{Cursor, Write};

use pishrink::bmap::{Bmap, ContentHash};
use pishrink::codec::{Codec, Decoder, Encoder};
use pishrink::error::ErrorKind;

use super::is_refusal;

/// Where unpacking stops: a bomb is no damage.
const MOST: u64 = 24 << 20;

pub fn gzip(data: &[u8]) {
    unpack(Codec::Gzip, data);
}

pub fn xz(data: &[u8]) {
    unpack(Codec::Xz, data);
    unpack(Codec::Xz, &xz_mended(data));
}

pub fn zstd(data: &[u8]) {
    unpack(Codec::Zstd, data);
}

pub fn bzip2(data: &[u8]) {
    unpack(Codec::Bzip2, data);
}

pub fn zip(data: &[u8]) {
    unpack(Codec::Zip, data);
}

/// Reads an image as a stream and as a file; what unpacks, packs again.
fn unpack(codec: Codec, data: &[u8]) {
    if Codec::detect(&data[..data.len().min(Codec::DETECT_LEN)]) != codec {
        return;
    }
    let streamed = read(codec, data, Decoder::new(Cursor::new(data.to_vec())));
    let sought = read(codec, data, Decoder::seekable(Cursor::new(data.to_vec())));
    if let (Some(streamed), Some(sought)) = (&streamed, &sought) {
        assert!(streamed == sought, "a file unpacks differently as a stream");
    }
    let Some(image) = streamed.filter(|image| image.len() < 1 << 20) else {
        return;
    };
    if codec.can_write() {
        let mut encoder = Encoder::new(codec, Some(1), 1, Vec::new()).unwrap();
        encoder.write_all(&image).unwrap();
        let packed = encoder.finish().unwrap();
        let again = read(codec, &packed, Decoder::new(Cursor::new(packed.clone())));
        assert!(again.as_ref() == Some(&image), "what was packed differs");
    }
}

/// Returns the image, or `None` if it is refused or too large.
fn read(codec: Codec, data: &[u8], opened: pishrink::error::Result<Decoder>) -> Option<Vec<u8>> {
    let mut decoder = match opened {
        Ok(decoder) => decoder,
        Err(error) => {
            is_refusal(&error);
            return None;
        }
    };
    assert_eq!(decoder.codec(), codec);
    let mut image = Vec::new();
    let mut buf = vec![0; 48 << 10];
    loop {
        let filled = decoder.read_full(&mut buf);
        assert!(decoder.bytes_in() <= data.len() as u64);
        match filled {
            Ok(count) => {
                image.extend_from_slice(&buf[..count]);
                assert_eq!(decoder.bytes_out(), image.len() as u64);
                if count < buf.len() {
                    assert_eq!(decoder.read_full(&mut buf).ok(), Some(0));
                    return Some(image);
                }
                if decoder.bytes_out() > MOST {
                    return None;
                }
            }
            Err(error) => {
                is_refusal(&error);
                let again = decoder.read_full(&mut buf).expect_err("it stays an error");
                assert_eq!(again.kind(), error.kind());
                return None;
            }
        }
    }
}

/// An xz file with the right checksums in its header, index and footer, if it has them.
fn xz_mended(data: &[u8]) -> Vec<u8> {
    let mut file = data.to_vec();
    let len = file.len();
    if len < 32 {
        return file;
    }
    let crc = |bytes: &[u8]| crc32fast::hash(bytes).to_le_bytes();
    let header = crc(&file[6..8]);
    file[8..12].copy_from_slice(&header);
    let footer = crc(&file[len - 8..len - 2]);
    file[len - 12..len - 8].copy_from_slice(&footer);
    let stated = u32::from_le_bytes(std::array::from_fn(|i| file[len - 8 + i]));
    let index = (stated as usize).saturating_add(1).saturating_mul(4);
    if index < len - 24 && index > 4 {
        let end = len - 16;
        let start = len - 12 - index;
        let sum = crc(&file[start..end]);
        file[end..end + 4].copy_from_slice(&sum);
    }
    file
}

pub fn bmap(data: &[u8]) {
    parse(data);
    parse(&bmap_mended(data));
}

fn parse(xml: &[u8]) {
    let map = match Bmap::parse(xml) {
        Ok(map) => map,
        Err(error) if error.kind() == ErrorKind::Verify => return,
        Err(error) => return is_refusal(&error),
    };
    let mapped = map.mapped_bytes();
    assert!(mapped.gaps(0..map.image_size).len() <= map.ranges.len() + 1);
    assert!(mapped.iter().all(|range| range.end <= map.image_size));
    for range in &map.ranges {
        let bytes = map.bytes_of(range);
        assert!(bytes.start < bytes.end && bytes.end <= map.image_size);
    }
    assert!(map.blocks() >= map.mapped_blocks);
    // Maps of version 1 have checksums that are not taken along.
    if map.ranges.iter().all(|range| range.sha256.is_some()) {
        let again = Bmap::parse(map.to_xml().as_bytes()).expect("what we write, we read");
        assert!(again == map, "the map changed on the way");
    }
}

/// A map with its own checksum right, if it has a place for one.
fn bmap_mended(xml: &[u8]) -> Vec<u8> {
    const TAG: &[u8] = b"<BmapFileChecksum>";
    let mut xml = xml.to_vec();
    let tag = xml.windows(TAG.len()).position(|window| window == TAG);
    let Some(place) = tag.map(|at| at + TAG.len()) else {
        return xml;
    };
    let Some(start) = (place..xml.len()).find(|&at| !xml[at].is_ascii_whitespace()) else {
        return xml;
    };
    if start + 64 <= xml.len() {
        xml[start..start + 64].fill(b'0');
        let mut hash = ContentHash::new();
        hash.update(&xml);
        xml[start..start + 64].copy_from_slice(hash.finish_hex().as_bytes());
    }
    xml
}
