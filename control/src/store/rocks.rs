//! The store on disk.
//!
//! **Recovery.** Every write is synced and only one is ever under way, so after a crash at most the last record of the
//! write-ahead log is torn, and nobody was told of it. Before the engine opens the directory, that end is moved out of
//! the log, and any other damage refuses to open (`wal` says why the engine cannot do it). `TolerateCorruptedTailRecords`
//! is what remains: the engine drops no whole record, and refuses on damage that it sees. `PointInTime` would stop at
//! the first damaged record and drop all that follows without a word. Closed log files are recorded in the manifest, so
//! one that vanished refuses too.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rocksdb::statistics::{StatsLevel, Ticker};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    LogLevel, Options, ReadOptions, SnapshotWithThreadMode, WriteBatch, WriteOptions,
};

use super::key::Meta;
use super::value::{MetaNumber, Value as _};
use super::wal::{self, WalError};
use super::{Scan, Store, StoreError, Table, View, Visit};
use crate::log::{Record, Write};
use crate::partition::Partition;

/// Version of keys and values that this program writes; it opens this one only.
pub const SCHEMA: u64 = 1;

/// Memory of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RocksOptions {
    /// Blocks read from disk, with their indexes and filters.
    pub block_cache_bytes: usize,
    /// One write buffer; the engine holds about two in all tables together.
    pub write_buffer_bytes: usize,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 256 << 20, write_buffer_bytes: 64 << 20 }
    }
}

/// Why a data directory cannot be used; each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{}: another gimbal process has this data directory open; stop it first, or set another directory", .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// No permission, or a read-only file system.
    #[error("{}: cannot write to the data directory ({cause}); check its owner, its mode and its mount", .path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// No space.
    #[error("{}: the disk of the data directory is full ({cause}); free some space and start again", .path.display())]
    Full {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Written by a later version.
    #[error("{}: written by a newer gimbal (schema {found}, this one knows {SCHEMA}); start that version or restore a backup", .path.display())]
    NewerSchema {
        /// The directory.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// Tables that this version does not know.
    #[error("{}: holds an unknown table \"{table}\": not a data directory of gimbal, or a newer one's", .path.display())]
    UnknownTable {
        /// The directory.
        path: PathBuf,
        /// Name of the column family.
        table: String,
    },
    /// Damage that is not the torn end of the log.
    #[error("{}: damaged ({cause}); nothing was changed: restore a backup, or copy the directory before trying anything", .path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What the engine said.
        cause: String,
    },
    /// Anything else the system or the engine said.
    #[error("{}: cannot open the data directory: {cause}", .path.display())]
    Failed {
        /// The directory.
        path: PathBuf,
        /// What was said.
        cause: String,
    },
}

/// RocksDB with one column family per table.
pub struct RocksStore {
    db: DB,
    options: Options,
    epoch: u32,
    syncs_at_open: u64,
    poisoned: AtomicBool,
    /// Dropped after `db`: the directory is ours until the engine is closed.
    _lock: Option<File>,
}

impl RocksStore {
    /// Opens or makes the directory, recovers its log, and begins a new control epoch (one synced write).
    ///
    /// # Errors
    /// [`OpenError`]; on all but a full disk the directory is as it was.
    pub fn open(path: &Path, rocks: RocksOptions) -> Result<Self, OpenError> {
        let lock = claim(path)?;
        mend_log(path)?;
        let options = db_options(rocks);
        refuse_unknown_tables(path, &options)?;
        let db = DB::open_cf_descriptors(&options, path, families(rocks))
            .map_err(|error| open_error(path, &error))?;
        let mut store = Self::over(db, options, Some(lock));
        store.check_schema(path)?;
        store.begin_epoch(path)?;
        store.syncs_at_open = store.options.get_ticker_count(Ticker::WalFileSynced);
        Ok(store)
    }

    /// Opens for reading only, also beside a process that has it open (as it was at this moment); begins no epoch.
    /// Every [`Store::apply`] fails.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn inspect(path: &Path) -> Result<Self, OpenError> {
        let rocks = RocksOptions { block_cache_bytes: 16 << 20, ..RocksOptions::default() };
        let mut options = db_options(rocks);
        options.create_if_missing(false);
        refuse_unknown_tables(path, &options)?;
        let db = DB::open_cf_descriptors_read_only(&options, path, families(rocks), false)
            .map_err(|error| open_error(path, &error))?;
        let mut store = Self::over(db, options, None);
        store.check_schema(path)?;
        let epoch = store.meta(path, Meta::ControlEpoch)?.unwrap_or(0);
        store.epoch = u32::try_from(epoch).unwrap_or(u32::MAX);
        Ok(store)
    }

    fn over(db: DB, options: Options, lock: Option<File>) -> Self {
        Self { db, options, epoch: 0, syncs_at_open: 0, poisoned: AtomicBool::new(false), _lock: lock }
    }

    fn check_schema(&self, path: &Path) -> Result<(), OpenError> {
        match self.meta(path, Meta::Schema)? {
            Some(found) if found > SCHEMA => Err(OpenError::NewerSchema { path: path.into(), found }),
            _ => Ok(()),
        }
    }

    fn begin_epoch(&mut self, path: &Path) -> Result<(), OpenError> {
        let failed = |cause: String| OpenError::Failed { path: path.into(), cause };
        let epoch = self.meta(path, Meta::ControlEpoch)?.unwrap_or(0) + 1;
        self.epoch = u32::try_from(epoch).map_err(|_| failed("opened too often".into()))?;
        let mut record = Record::default();
        record.put(Table::Meta, &Meta::Schema.key(), &MetaNumber { value: SCHEMA }.to_bytes());
        record.put(Table::Meta, &Meta::ControlEpoch.key(), &MetaNumber { value: epoch }.to_bytes());
        self.apply(&[(Partition::META, record)]).map_err(|error| failed(error.to_string()))
    }

    fn meta(&self, path: &Path, meta: Meta) -> Result<Option<u64>, OpenError> {
        let damaged = |cause: String| OpenError::Damaged { path: path.into(), cause };
        let bytes = self.get(Table::Meta, &meta.key()).map_err(|error| damaged(error.to_string()))?;
        bytes
            .map(|bytes| MetaNumber::from_bytes(&bytes).map(|number| number.value))
            .transpose()
            .map_err(|error| damaged(error.to_string()))
    }

    fn family(&self, table: Table) -> &ColumnFamily {
        self.db.cf_handle(table.name()).expect("every table was opened")
    }

    fn refuse_if_poisoned(&self) -> Result<(), StoreError> {
        if self.is_healthy() { Ok(()) } else { Err(StoreError::Poisoned) }
    }
}

impl View for RocksStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.refuse_if_poisoned()?;
        let value = self.db.get_pinned_cf(self.family(table), key).map_err(|error| engine(&error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.snapshot().scan(table, from, to, visit)
    }
}

struct Snapshot<'a> {
    store: &'a RocksStore,
    at: SnapshotWithThreadMode<'a, DB>,
}

impl View for Snapshot<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.refuse_if_poisoned()?;
        self.at.get_cf(self.store.family(table), key).map_err(|error| engine(&error))
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.refuse_if_poisoned()?;
        if from >= to {
            return Ok(());
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let mut items = self.at.raw_iterator_cf_opt(self.store.family(table), options);
        items.seek(from);
        while let Some((key, value)) = items.item() {
            if visit(key, value)? == Scan::Stop {
                return Ok(());
            }
            items.next();
        }
        items.status().map_err(|error| engine(&error))
    }
}

impl Store for RocksStore {
    fn snapshot(&self) -> Box<dyn View + '_> {
        Box::new(Snapshot { store: self, at: self.db.snapshot() })
    }

    fn apply(&self, records: &[(Partition, Record)]) -> Result<(), StoreError> {
        self.refuse_if_poisoned()?;
        self.write(records).inspect_err(|error| {
            self.poisoned.store(true, Ordering::SeqCst);
            tracing::error!(%error, "commit failed; the store refuses everything until it is restarted");
        })
    }

    fn is_healthy(&self) -> bool {
        !self.poisoned.load(Ordering::SeqCst)
    }

    fn control_epoch(&self) -> u32 {
        self.epoch
    }

    fn wal_syncs(&self) -> u64 {
        self.options.get_ticker_count(Ticker::WalFileSynced) - self.syncs_at_open
    }
}

impl RocksStore {
    fn write(&self, records: &[(Partition, Record)]) -> Result<(), StoreError> {
        let bytes = records.iter().map(|(_, record)| record.as_bytes().len()).sum();
        let families = Table::ALL.map(|table| self.family(table));
        let mut batch = WriteBatch::with_capacity_bytes(bytes);
        for (_, record) in records {
            for op in record.ops() {
                let op = op?;
                let family = families[op.table as usize];
                match op.write {
                    Write::Put(value) => batch.put_cf(family, op.key, value),
                    Write::Delete => batch.delete_cf(family, op.key),
                    Write::DeleteTo(end) => batch.delete_range_cf(family, op.key, end),
                }
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(|error| engine(&error))
    }
}

fn engine(error: &rocksdb::Error) -> StoreError {
    StoreError::Engine(error.to_string())
}

fn db_options(rocks: RocksOptions) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    // Only the counters, for `wal_syncs`; timers and histograms cost time on every read.
    options.enable_statistics();
    options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    options.set_db_write_buffer_size(2 * rocks.write_buffer_bytes);
    // Bounds what a start has to replay, whichever table is slow to fill its buffer.
    options.set_max_total_wal_size(256 << 20);
    // One thread writes.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(4);
    options
}

fn families(rocks: RocksOptions) -> [ColumnFamilyDescriptor; Table::ALL.len()] {
    let cache = Cache::new_lru_cache(rocks.block_cache_bytes);
    Table::ALL.map(|table| ColumnFamilyDescriptor::new(table.name(), table_options(rocks, &cache)))
}

fn table_options(rocks: RocksOptions, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_block_size(16 << 10);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(rocks.write_buffer_bytes);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// Makes the directory for its owner alone, takes its lock, and writes, syncs and removes a small file there.
fn claim(path: &Path) -> Result<File, OpenError> {
    let classify = |error: io::Error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            OpenError::Full { path: path.into(), cause: error }
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            OpenError::NotWritable { path: path.into(), cause: error }
        }
        _ => OpenError::Failed { path: path.into(), cause: error.to_string() },
    };
    if !path.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(classify)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Else a loss of power could take the whole directory with what is acknowledged in it.
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(classify)?;
    }
    let lock = File::create(path.join("gimbal.lock")).map_err(classify)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.into() }),
        Err(fs::TryLockError::Error(error)) => return Err(classify(error)),
    }
    let probe = path.join("gimbal.probe");
    let written =
        File::create(&probe).and_then(|mut file| file.write_all(&[0; PROBE_BYTES]).and(file.sync_all()));
    let removed = fs::remove_file(&probe);
    written.and(removed).map_err(classify)?;
    Ok(lock)
}

fn mend_log(path: &Path) -> Result<(), OpenError> {
    match wal::mend(path) {
        Ok(None) => Ok(()),
        Ok(Some(torn)) => {
            tracing::warn!(
                log = %torn.log.display(),
                at = torn.at,
                kept = %torn.kept.display(),
                "the end of the write-ahead log was torn, as after a loss of power, and is set aside: nobody was told of it"
            );
            Ok(())
        }
        Err(WalError::Io(error)) => Err(OpenError::Failed { path: path.into(), cause: error.to_string() }),
        Err(error @ WalError::Damaged { .. }) => {
            Err(OpenError::Damaged { path: path.into(), cause: error.to_string() })
        }
    }
}

/// Enough that a full disk shows here, with a clear error, and not in the engine's recovery.
const PROBE_BYTES: usize = 1 << 20;

fn refuse_unknown_tables(path: &Path, options: &Options) -> Result<(), OpenError> {
    if !path.join("CURRENT").exists() {
        return Ok(());
    }
    let names = DB::list_cf(options, path).map_err(|error| open_error(path, &error))?;
    match names.into_iter().find(|name| name != "default" && Table::from_name(name).is_none()) {
        Some(table) => Err(OpenError::UnknownTable { path: path.into(), table }),
        None => Ok(()),
    }
}

fn open_error(path: &Path, error: &rocksdb::Error) -> OpenError {
    let (path, cause) = (path.to_owned(), error.to_string());
    match error.kind() {
        rocksdb::ErrorKind::Corruption => OpenError::Damaged { path, cause },
        _ => OpenError::Failed { path, cause },
    }
}
