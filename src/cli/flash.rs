//! `pishrink flash`.

use super::args::Flash;
use super::exit::Exit;
use super::render::Screen;
use crate::error::{Error, Result};

pub fn run(_: &Flash, _: &Screen) -> Result<Exit> {
    Err(Error::unsupported("flash is not there yet"))
}
