//! The multiplexor, paragraph by paragraph of the document that describes the kernel's (KCM): each
//! module is a heading there, each test a paragraph, by its own claim.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod mux {
    pub(crate) mod given;

    mod batching;
    mod delineation;
    mod errors;
    mod flavours;
    mod flow;
    mod handles;
    mod hostile;
    mod management;
    mod sending;
}
