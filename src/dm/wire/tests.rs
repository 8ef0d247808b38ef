//! Bytes by hand: requests as they must be, answers as kernels of several versions write them. The
//! properties of requests are in `tests/wire.rs`.

mod answers;
mod requests;
