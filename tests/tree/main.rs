//! What the tree offers beyond adding and removing, on the model kernel: no root needed.

mod family;
mod rig;
