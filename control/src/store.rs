//! What the rules need of a store: ordered bytes in tables, one atomic synced write, snapshots.

mod contract;
pub mod inspect;
pub mod key;
pub mod memory;
pub mod rocks;
pub mod value;
pub(crate) mod wal;

pub use contract::{Scan, Store, StoreError, Table, View, Visit};
