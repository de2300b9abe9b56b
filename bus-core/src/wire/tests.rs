//! Frames of every kind there and back, and what bad bytes get.
#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

mod corpus;

use bytes::BytesMut;

use super::{BrokerFrame, ClientFrame};

/// What both directions have in common, so that every test runs on both.
trait Direction: Sized + PartialEq + std::fmt::Debug {
    fn decode(unread: &mut BytesMut) -> Result<Option<Self>, super::WireError>;
    fn bytes_needed(unread: &[u8]) -> Result<usize, super::WireError>;
    fn encode(&self, out: &mut BytesMut) -> Result<(), super::EncodeError>;
    fn corpus() -> Vec<(&'static str, Self)>;
}

macro_rules! direction {
    ($frame:ident, $corpus:path) => {
        impl Direction for $frame {
            fn decode(unread: &mut BytesMut) -> Result<Option<Self>, super::WireError> {
                Self::decode(unread)
            }
            fn bytes_needed(unread: &[u8]) -> Result<usize, super::WireError> {
                Self::bytes_needed(unread)
            }
            fn encode(&self, out: &mut BytesMut) -> Result<(), super::EncodeError> {
                self.encode(out)
            }
            fn corpus() -> Vec<(&'static str, Self)> {
                $corpus()
            }
        }
    };
}

direction!(ClientFrame, corpus::client);
direction!(BrokerFrame, corpus::broker);

fn encoded<F: Direction>(frame: &F) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out).unwrap();
    out
}

#[test]
fn every_frame_comes_back_as_it_was() {
    fn check<F: Direction>() {
        for (case, frame) in F::corpus() {
            let mut bytes = encoded(&frame);
            let length = bytes.len();
            assert_eq!(F::bytes_needed(&bytes), Ok(length), "{case}");
            assert_eq!(
                F::decode(&mut bytes).unwrap().as_ref(),
                Some(&frame),
                "{case}"
            );
            assert!(bytes.is_empty(), "{case}");
        }
    }
    check::<ClientFrame>();
    check::<BrokerFrame>();
}
