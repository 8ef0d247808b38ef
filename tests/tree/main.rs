//! What the tree offers beyond adding and removing, on the model kernel: no root needed.

#![allow(unreachable_pub)] // in a program of its own, pub means no more than pub(crate)

mod active;
mod adding;
mod adopt;
mod check;
mod devices;
mod disk;
mod engine;
mod family;
mod first_open;
mod growth;
mod identity;
mod life;
mod messages;
mod metadata;
mod ready;
mod recovered;
mod removal;
mod rig;
mod root;
mod seal;
mod space;
mod status;
mod stream;
mod suspended;
