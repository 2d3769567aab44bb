//! Messages over TCP: each after its length (RFC 1035, 4.2.2).

/// Its length says so.
const MAX_BYTES: usize = u16::MAX as usize;
const LENGTH_BYTES: usize = 2;

/// What one side has sent and nobody has read.
#[derive(Debug, Default)]
pub struct Stream {
    bytes: Vec<u8>,
}

impl Stream {
    /// More came. At most one message more than the longest is kept: who sends on is not read.
    pub fn received(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether another message may be read before one is taken out.
    pub fn has_room(&self) -> bool {
        self.bytes.len() < LENGTH_BYTES + MAX_BYTES
    }

    /// The next message, if all of it is here.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let (length, rest) = self.bytes.split_first_chunk::<LENGTH_BYTES>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        let message = rest.get(..length)?.to_vec();
        self.bytes.drain(..LENGTH_BYTES + length);
        Some(message)
    }

    /// A message with its length, unless it is too long.
    pub fn framed(message: &[u8]) -> Option<Vec<u8>> {
        let length = u16::try_from(message.len()).ok()?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(message);
        Some(bytes)
    }
}
