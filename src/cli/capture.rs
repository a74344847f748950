//! `pishrink capture`.

use super::args::Capture;
use super::exit::Exit;
use super::render::Screen;
use crate::error::{Error, Result};

pub fn run(_: &Capture, _: &Screen) -> Result<Exit> {
    Err(Error::unsupported("capture is not there yet"))
}
