//! `pishrink expand`.

use super::args::Expand;
use super::exit::Exit;
use super::render::Screen;
use crate::error::{Error, Result};

pub fn run(_: &Expand, _: &Screen) -> Result<Exit> {
    Err(Error::unsupported("expand is not there yet"))
}
