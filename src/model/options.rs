//! What kind of kernel it is.

use std::time::Duration;

/// What kind of kernel it is.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// Device mapper's interface version is 4.this.
    pub interface_minor: u32,
    /// Whether `/dev/loop-control` is there (since 3.1).
    pub loop_control: bool,
    /// Loop devices that are there from the start.
    pub loop_devices: u32,
    /// Whether udev runs. It makes the nodes of mapped devices, and is done with every event at once.
    pub udev: bool,
    /// How long DEV_WAIT waits before it is interrupted.
    pub wait_limit: Duration,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            interface_minor: 48,
            loop_control: true,
            loop_devices: 8,
            udev: false,
            wait_limit: Duration::from_secs(1),
        }
    }
}
