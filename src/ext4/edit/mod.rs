//! The editor: files and directories change in memory, over a filesystem.

pub mod delete;
pub mod directory;
pub mod editor;
pub mod file;
pub mod quota;
mod release;
pub mod room;
mod truncate;
