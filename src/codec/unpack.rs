//! What unpacks a format: one step at a time, and stream after stream with zeros behind them.

/// What a format's unpacker makes of a stretch of its input.
pub(super) trait Unpack: Send {
    /// Takes some of `input` and fills some of `output`. `last` says that nothing follows `input`.
    /// Doing neither means that it needs more input.
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<Step, Fault>;

    /// May the input end after what was taken so far?
    fn may_end(&self) -> bool;

    /// Returns how many bytes behind the packed data were passed over.
    fn ignored(&self) -> u64 {
        0
    }
}

/// Bytes taken from the input and put into the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    pub(super) read: usize,
    pub(super) written: usize,
}

impl Step {
    pub(super) const NOTHING: Step = Step {
        read: 0,
        written: 0,
    };
}

/// Why a format cannot be unpacked, still without its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    Damaged(String),
    Unsupported(String),
}

/// Unpacks one stream of a format.
pub(super) trait Stream: Send {
    /// As [`Unpack::step`]; also tells whether the stream is complete.
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<(Step, bool), Fault>;
}

/// Unpacks stream after stream.
pub(super) struct Streams {
    open: fn() -> Result<Box<dyn Stream>, Fault>,
    format: Format,
    current: Option<Box<dyn Stream>>,
    seen: bool,
    zeros: u64,
    ignored: u64,
}

/// What tells a format's streams from what may stand behind them.
#[derive(Clone, Copy)]
pub(super) struct Format {
    /// The first bytes of a stream.
    pub(super) magic: &'static [u8],
    /// Zeros may stand behind a stream, in this multiple (0: not at all).
    pub(super) padding: u64,
    /// May something else stand behind the last stream? Then it is passed over.
    pub(super) appended: bool,
}

impl Streams {
    pub(super) fn new(open: fn() -> Result<Box<dyn Stream>, Fault>, format: Format) -> Self {
        Self {
            open,
            format,
            current: None,
            seen: false,
            zeros: 0,
            ignored: 0,
        }
    }

    fn padding_complete(&self) -> bool {
        self.zeros == 0 || self.zeros.is_multiple_of(self.format.padding)
    }
}

/// Does `input` begin with `magic`, a few bits aside? Then it is a stream, maybe a damaged one.
fn is_nearly(input: &[u8], magic: &[u8]) -> bool {
    const FEW: u32 = 2;
    let pairs = input.iter().zip(magic);
    let differing: u32 = pairs.map(|(there, byte)| (there ^ byte).count_ones()).sum();
    input.len() >= magic.len() && differing <= FEW
}

impl Streams {
    /// Takes bytes that mean nothing here.
    fn pass_over(&mut self, count: usize) -> Step {
        self.ignored += count as u64;
        Step {
            read: count,
            written: 0,
        }
    }
}

impl Unpack for Streams {
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<Step, Fault> {
        let stream = match &mut self.current {
            Some(stream) => stream,
            None => {
                let Some(&first) = input.first() else {
                    return Ok(Step::NOTHING);
                };
                if self.ignored > 0 {
                    return Ok(self.pass_over(input.len()));
                }
                if first == 0 && self.format.padding > 0 && self.seen {
                    let read = input.iter().take_while(|&&byte| byte == 0).count();
                    self.zeros += read as u64;
                    return Ok(Step { read, written: 0 });
                }
                let magic = self.format.magic;
                if input.len() < magic.len() && !last {
                    return Ok(Step::NOTHING);
                }
                if self.format.appended && self.seen && !is_nearly(input, magic) {
                    return Ok(self.pass_over(input.len()));
                }
                if !input.starts_with(magic) || !self.padding_complete() {
                    return Err(Fault::Damaged("something else follows its end".into()));
                }
                self.zeros = 0;
                self.seen = true;
                self.current.insert((self.open)()?)
            }
        };
        let (step, complete) = stream.step(input, output, last)?;
        if complete {
            self.current = None;
        }
        Ok(step)
    }

    fn ignored(&self) -> u64 {
        self.ignored
    }

    fn may_end(&self) -> bool {
        self.seen && self.current.is_none() && self.padding_complete()
    }
}
