//! The binary's flash, expand and verify on files and loop devices, judged by sfdisk, sgdisk, e2fsck,
//! bmaptool and the kernel. Needs root and those tools; a missing one fails the test.
#![cfg(target_os = "linux")]

#[path = "../common/badcard.rs"]
mod badcard;
mod cards;
mod faults;
mod feed;
mod images;
mod layouts;
mod safety;
#[path = "../common/scratch.rs"]
mod scratch;
mod since;
mod tools;
mod web;
