//! What was sent.

use uuid::Uuid;

use crate::snapshots::Content;

/// A stream, and what is in it.
#[derive(Debug, Clone)]
pub struct Stream {
    pub bytes: Vec<u8>,
    pub volumes: Vec<Volume>,
}

#[derive(Debug, Clone)]
pub struct Volume {
    pub id: String,
    pub uuid: Uuid,
    pub base: Option<Uuid>,
    pub content: Content,
}
