//! Tests on tables that sfdisk and sgdisk made, judged by them and by the crates mbrman and gpt.

mod bytes;
mod fuzz;
mod oracle;
