//! The endpoints of one connection, by their handles.
//!
//! Most connections have one endpoint and live for days, so what counts is what a short list takes.
//! It is sorted, for the few that have thousands.

use bus_core::wire::Handle;

use super::port::Port;

#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "a port is large, and those of a long list move")]
pub(super) struct Ports(Vec<Box<Port>>);

impl Ports {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains(&self, handle: Handle) -> bool {
        self.place(handle).is_ok()
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Port> {
        let at = self.place(handle).ok()?;
        Some(&mut self.0[at])
    }

    /// Adds an endpoint; the caller has looked that its handle is free.
    pub(super) fn insert(&mut self, port: Port) {
        let place = self.place(port.handle());
        debug_assert!(place.is_err(), "the handle is free");
        if self.0.is_empty() {
            self.0.reserve_exact(1);
        }
        self.0.insert(place.unwrap_or_else(|at| at), Box::new(port));
    }

    pub(super) fn remove(&mut self, handle: Handle) -> Option<Box<Port>> {
        Some(self.0.remove(self.place(handle).ok()?))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Port> {
        self.0.iter().map(|port| &**port)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn place(&self, handle: Handle) -> Result<usize, usize> {
        self.0.binary_search_by_key(&handle, |port| port.handle())
    }
}
