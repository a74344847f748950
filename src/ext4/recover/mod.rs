//! Recovery, in memory, of a filesystem that was not unmounted cleanly: the journal's log, its fast
//! commits, orphans.

mod apply;
pub mod fast_commit;
pub mod journal;
pub mod orphan;
mod orphan_list;
pub mod tags;
