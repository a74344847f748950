//! `pishrink inspect`.

use super::args::Inspect;
use super::exit::Exit;
use super::render::Screen;
use crate::error::{Error, Result};

pub fn run(_: &Inspect, _: &Screen) -> Result<Exit> {
    Err(Error::unsupported("inspect is not there yet"))
}
