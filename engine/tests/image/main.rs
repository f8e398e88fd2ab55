//! The image service against real parts: a real registry, real archives, real file systems; and
//! against a server that misbehaves on purpose, because a real one does so too rarely.

mod fixture;
mod registry;
mod sources;
