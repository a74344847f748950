//! Little-endian fields at fixed offsets: one description of each on-disk structure serves
//! decoding and encoding, and bytes that no field names stay as they are.

pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn put_be32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Joins the low and the high half of a number that the format stores in two places.
pub fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Makes getters and setters for little-endian fields of a struct whose field 0 is its bytes.
macro_rules! le_fields {
    ($name:ident { $( $(#[$doc:meta])* $get:ident $set:ident $ty:ident $at:literal; )* }) => {
        impl<T: AsRef<[u8]>> $name<T> {
            $( $(#[$doc])*
            pub fn $get(&self) -> $ty {
                le_fields!(@get $ty self.0.as_ref(), $at)
            } )*
        }
        impl<T: AsRef<[u8]> + AsMut<[u8]>> $name<T> {
            $( pub fn $set(&mut self, value: $ty) {
                self.0.as_mut()[$at..$at + size_of::<$ty>()].copy_from_slice(&value.to_le_bytes());
            } )*
        }
    };
    (@get u8 $bytes:expr, $at:literal) => { $bytes[$at] };
    (@get u16 $bytes:expr, $at:literal) => { $crate::ext4::format::raw::le16($bytes, $at) };
    (@get u32 $bytes:expr, $at:literal) => { $crate::ext4::format::raw::le32($bytes, $at) };
}
pub(crate) use le_fields;
