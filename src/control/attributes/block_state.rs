//! `block_state`: a line for each slot that holds something.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame};

use super::text;
use crate::device::Slots;

/// The text of `block_state`, as the body of an answer, in chunks of at most some 40 KiB: what a reader takes of
/// it is made when it takes it, whatever the size of the disk. After each chunk others have their turn.
pub struct BlockState {
    slots: Slots,
    more: bool,
    /// The last poll did something.
    worked: bool,
}

impl BlockState {
    /// The text of the disk whose slots these are.
    pub fn new(slots: Slots) -> Self {
        Self { slots, more: true, worked: false }
    }
}

impl Body for BlockState {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::take(&mut self.worked) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.more {
            return Poll::Ready(None);
        }
        let mut chunk = String::new();
        self.more = self.slots.visit_some(|index, state| text::push_slot(&mut chunk, index, state));
        if chunk.is_empty() {
            // Once more: for the end, or as the others had their turn.
            self.worked = self.more;
            return self.poll_frame(cx);
        }
        self.worked = true;
        Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;

    use super::*;
    use crate::device::{BlockChoice, Device, DeviceConfig, MemoryKind, Op, Payload, PayloadFault};
    use crate::engine::EngineConfig;
    use crate::sync;

    /// Bytes that are all the same.
    struct Filled(u8);

    impl Payload for Filled {
        fn fetch(&mut self, _: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
            into.fill(self.0);
            Ok(())
        }

        fn deliver(&mut self, _: u64, _: &[u8]) -> Result<(), PayloadFault> {
            Err(PayloadFault)
        }
    }

    fn device_with(pages: &[u64]) -> Arc<Device> {
        let device = Device::new(&DeviceConfig {
            size: 1 << 30,
            block_size: BlockChoice::default(),
            codec: "lz4".parse().unwrap(),
            mem_limit: 0,
            memory: MemoryKind::default(),
            access_times: false,
            engine: EngineConfig::default(),
        });
        let device = Arc::new(device.unwrap());
        let mut context = device.worker_context().unwrap();
        for page in pages {
            let mut io = device.request(Op::Write, page * 8, 4096, Filled(7)).unwrap();
            sync::block_on(|cx| io.poll(&mut context, cx)).unwrap();
        }
        device
    }

    fn lines(device: Arc<Device>) -> (Vec<String>, usize) {
        let mut body = BlockState::new(Slots::new(device));
        let (mut text, mut longest, mut rested) = (String::new(), 0, true);
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Pending => rested = true,
                Poll::Ready(None) => break,
                Poll::Ready(Some(Ok(frame))) => {
                    assert!(std::mem::take(&mut rested), "two chunks in one turn");
                    let chunk = frame.into_data().unwrap();
                    longest = longest.max(chunk.len());
                    text += std::str::from_utf8(&chunk).unwrap();
                }
            }
        }
        (text.lines().map(str::to_owned).collect(), longest)
    }

    #[test]
    fn the_text_comes_in_chunks_and_others_have_their_turn_between() {
        let pages: Vec<_> = (0..3000).chain([262_143]).collect();
        let (lines, longest) = lines(device_with(&pages));
        let expected = pages.iter().map(|page| format!("{page:12}            0.000000 s....."));
        assert_eq!(lines, expected.collect::<Vec<_>>());
        assert!(longest <= 40 << 10, "a chunk of {longest} bytes");
    }

    #[test]
    fn a_blank_disk_has_no_line() {
        assert_eq!(lines(device_with(&[])).0.len(), 0);
    }
}
