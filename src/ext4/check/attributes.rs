//! Extended attributes: in blocks and in slots, and the inodes that hold large values.

use crate::error::Result;
use crate::ext4::check::Check;
use crate::ext4::format::inode::{EA_INODE_FL, INLINE_DATA_FL, Inode};
use crate::ext4::format::raw::le16;
use crate::ext4::format::superblock::{COMPAT_EXT_ATTR, INCOMPAT_EA_INODE};
use crate::ext4::format::xattr;
use crate::ext4::format::xattr::{Area, BadXattr, Value, Xattr};
use crate::ext4::read::blocks::for_each_block;
use crate::units::{BlockNr, InodeNr};

/// `e_name_index` of the attribute with an encryption policy.
const INDEX_ENCRYPTION: u8 = 9;
/// The longest value of an attribute.
const SIZE_MAX: u32 = 1 << 16;

/// What a set of attributes says about its owner.
#[derive(Clone, Copy, Default, Debug)]
pub struct Summary {
    /// Clusters and inodes that the owner is charged for ea_inodes.
    pub charge: u64,
    pub ea_inodes: u64,
    /// The encryption policy, if there is one.
    pub policy: Option<Policy>,
}

/// An encryption policy: a number that stands for its contents, which are opaque.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    Known(u32),
    /// Of a version that is not known.
    Foreign,
    Invalid,
}

/// Whose attributes they are.
#[derive(Clone, Copy)]
pub enum Owner {
    Slot {
        number: InodeNr,
        generation: u32,
        /// Is the inode's data an attribute as well?
        inline: bool,
    },
    Block(BlockNr),
}

impl Check<'_> {
    /// Checks every xattr block once, for all that share it.
    pub(super) fn xattr_blocks(&mut self) -> Result<()> {
        let blocks: Vec<(BlockNr, u32)> = self
            .meta
            .xattr_blocks
            .iter()
            .map(|(&block, &sharers)| (block, sharers))
            .collect();
        if !blocks.is_empty() && !self.fs.superblock.has_compat(COMPAT_EXT_ATTR) {
            self.damaged("there are xattr blocks, but the superblock lacks ext_attr");
        }
        let (view, fs) = (self.view, self.fs);
        for_each_block(
            view,
            fs,
            &blocks,
            |item| item.0,
            |&(block, sharers), bytes| self.xattr_block(block, sharers, bytes),
        )
    }

    fn xattr_block(&mut self, block: BlockNr, sharers: u32, bytes: &[u8]) -> Result<()> {
        let area = match xattr::in_block(bytes) {
            Ok(area) => area,
            Err(BadXattr(text)) => {
                self.damaged(format_args!("xattr block {block}: {text}"));
                return Ok(());
            }
        };
        if !xattr::checksum_matches(self.fs, block, bytes) {
            self.damaged(format_args!(
                "xattr block {block}: its checksum does not match"
            ));
        }
        if xattr::h_refcount(bytes) != sharers {
            self.damaged(format_args!(
                "xattr block {block}: counts {} sharers but has {sharers}",
                xattr::h_refcount(bytes)
            ));
        }
        let summary = self.attributes(Owner::Block(block), bytes, &area)?;
        if summary.ea_inodes > 0 {
            self.ea_charges
                .insert(block, (summary.charge, summary.ea_inodes));
        }
        if let Some(policy) = summary.policy {
            self.block_policies.insert(block, policy);
        }
        Ok(())
    }

    /// Checks the attributes in `area` of `bytes`, a slot or a block.
    pub(super) fn attributes(
        &mut self,
        owner: Owner,
        bytes: &[u8],
        area: &Area,
    ) -> Result<Summary> {
        let mut summary = Summary::default();
        let mut taken = Vec::new();
        let mut end = area.entries.start;
        for xattr in area.iter(bytes) {
            let xattr = match xattr {
                Ok(xattr) => xattr,
                Err(BadXattr(text)) => {
                    self.attribute_damaged(owner, text);
                    return Ok(summary);
                }
            };
            end = xattr.entry_range().end;
            taken.push(xattr.entry_range());
            match &xattr.value {
                Value::Here(value) => {
                    if value.len() > SIZE_MAX as usize {
                        self.attribute_damaged(owner, "an attribute's value is too long");
                    }
                    if !value.is_empty() {
                        let len = xattr::padded(value.len());
                        taken.push(value.start..value.start + len);
                    }
                    if xattr.name_index == INDEX_ENCRYPTION && xattr.name == b"c" {
                        summary.policy = Some(self.policy(&bytes[value.clone()]));
                    }
                    self.value_hash(owner, bytes, &xattr);
                }
                Value::Inode { number, size } => {
                    summary.charge += self.large_value(owner, &xattr, *number, *size)?;
                    summary.ea_inodes += 1;
                }
            }
            if matches!(owner, Owner::Block(_)) && xattr.name_index == 0 {
                self.attribute_damaged(owner, "an attribute has no kind of name");
            }
            // Even where there is no value; in a slot only those look who look for inline data.
            let looked_at = match owner {
                Owner::Block(_) => true,
                Owner::Slot { inline, .. } => inline,
            };
            let e_value_offs = usize::from(le16(bytes, xattr.offset + 2));
            let (fits, text) = match xattr.value {
                Value::Here(_) => (
                    area.base + e_value_offs <= bytes.len(),
                    "an attribute's value goes past the end",
                ),
                Value::Inode { .. } => (
                    e_value_offs == 0,
                    "an attribute's value is in an inode, and yet here",
                ),
            };
            if looked_at && !fits {
                self.attribute_damaged(owner, text);
            }
        }
        taken.push(end..end + 4);
        taken.sort_unstable_by_key(|range| range.start);
        let overlap = taken.windows(2).any(|two| two[0].end > two[1].start);
        let inside = |range: &std::ops::Range<usize>| {
            range.start >= area.entries.start && range.end <= area.entries.end
        };
        if overlap || !taken.iter().all(inside) {
            self.attribute_damaged(owner, "attributes overlap");
        }
        Ok(summary)
    }

    fn attribute_damaged(&mut self, owner: Owner, text: &str) {
        match owner {
            Owner::Slot { number, .. } => self.inode_damaged(number, text),
            Owner::Block(block) => self.damaged(format_args!("xattr block {block}: {text}")),
        }
    }

    /// Numbers the policies as they are met; what follows the policy is a nonce.
    fn policy(&mut self, context: &[u8]) -> Policy {
        let policy = match (context.first(), context.len()) {
            (Some(1), 28) => &context[..12],
            (Some(2), 40) => &context[..24],
            (None | Some(0..=2), _) => return Policy::Invalid,
            _ => return Policy::Foreign,
        };
        // OK: there are fewer policies than inodes.
        let next = self.policies.len() as u32;
        Policy::Known(*self.policies.entry(policy.to_vec()).or_insert(next))
    }

    fn value_hash(&mut self, owner: Owner, bytes: &[u8], xattr: &Xattr<'_>) {
        let Value::Here(value) = &xattr.value else {
            return;
        };
        // The kernel leaves the hash out of attributes in slots.
        if xattr.e_hash == 0 && matches!(owner, Owner::Slot { .. }) {
            return;
        }
        let hashes = xattr::entry_hashes(xattr.name, xattr::value_words(bytes, value.clone()));
        if !hashes.contains(&xattr.e_hash) {
            self.attribute_damaged(owner, "an attribute's hash does not match");
        }
    }

    /// Checks a reference to an ea_inode; returns the clusters that its owner is charged for.
    fn large_value(
        &mut self,
        owner: Owner,
        xattr: &Xattr<'_>,
        number: InodeNr,
        size: u32,
    ) -> Result<u64> {
        *self.ea_references.entry(number).or_default() += 1;
        if !self.fs.superblock.has_incompat(INCOMPAT_EA_INODE) {
            self.attribute_damaged(
                owner,
                "an attribute's value is in an inode without ea_inode",
            );
        }
        let Some(record) = self.inode(number) else {
            let text = format!("an attribute's value is in inode {number}, which is not in use");
            self.attribute_damaged(owner, &text);
            return Ok(0);
        };
        if record.flags & EA_INODE_FL == 0
            || record.flags & INLINE_DATA_FL != 0
            || number.0 < self.fs.superblock.first_ino()
        {
            let text = format!("an attribute's value is in inode {number}, which holds none");
            self.attribute_damaged(owner, &text);
            return Ok(0);
        }
        let inode = self.meta.read_inode(self.view, number)?;
        let hash = xattr::ea_inode_hash(&inode);
        let hashes = xattr::entry_hashes(xattr.name, std::iter::once(hash));
        if record.size != u64::from(size) || size > SIZE_MAX {
            let text = format!(
                "an attribute of {size} bytes is in inode {number} of {} bytes",
                record.size
            );
            self.attribute_damaged(owner, &text);
        }
        if hashes.contains(&xattr.e_hash) {
            let geometry = &self.fs.geometry;
            return Ok(u64::from(size).div_ceil(geometry.block_size * geometry.cluster_ratio));
        }
        if !self.is_lustre_reference(owner, &inode) {
            let text = format!("the hash of an attribute in inode {number} does not match");
            self.attribute_damaged(owner, &text);
        }
        Ok(0)
    }

    /// Lustre's inodes for values keep no hash but their owner's number and generation.
    fn is_lustre_reference(&self, owner: Owner, inode: &Inode) -> bool {
        let back = InodeNr(inode.i_mtime());
        match owner {
            Owner::Slot {
                number, generation, ..
            } => number == back && generation == inode.i_generation(),
            Owner::Block(block) => self.inode(back).is_some_and(|record| {
                record.file_acl == block && record.generation == inode.i_generation()
            }),
        }
    }
}
