//! `pishrink verify`.

use super::args::Verify;
use super::exit::Exit;
use super::render::Screen;
use crate::error::{Error, Result};

pub fn run(_: &Verify, _: &Screen) -> Result<Exit> {
    Err(Error::unsupported("verify is not there yet"))
}
