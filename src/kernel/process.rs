//! Which process this is: a child of fork has the memory and the descriptors of another one's tree.

/// The process that made a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn current() -> Self {
        Self(std::process::id())
    }

    /// Whether this is not a child of it.
    pub(crate) fn is_current(self) -> bool {
        self == Self::current()
    }

    /// Its id, from `std::process::id()`.
    pub(crate) fn id(self) -> u32 {
        self.0
    }

    /// As in a child.
    #[cfg(test)]
    pub(crate) fn parent() -> Self {
        Self(std::process::id() + 1)
    }
}
