//! What outlives the head daemon, in SQLite: nodes, detached jobs, the cluster's CA and tokens.
//! Running tasks are not here: the keeper holds their records, the agents the tasks themselves.

mod machines;

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};
use wiglaf_wire::client::JobInfo;
use wiglaf_wire::id::{JobId, NodeId};

use crate::node_table::{Node, NodeTable, TableFull, Wanted};

/// Job numbers are taken from the store this many at a time, so that a launch writes nothing.
const JOB_NUMBERS_PER_GRANT: u64 = 10_000;
/// Columns of the table of nodes.
const NODE_COLUMNS: usize = 9;
/// Detached jobs that are remembered.
const KEPT_JOBS: u32 = 1_000;

/// The database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's word.
    #[error("the head's database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// It holds more nodes than there can be.
    #[error("the head's database: {0}")]
    Nodes(#[from] TableFull),
    /// A job that can't be written.
    #[error("the head's database: a job can't be encoded: {0}")]
    Job(#[from] postcard::Error),
}

/// The database.
#[derive(Debug)]
pub struct Store {
    db: Connection,
}

/// What proves who the cluster is.
#[derive(Debug)]
pub struct ClusterSecrets {
    /// The cluster's identifier.
    pub cluster: String,
    /// The CA's certificate, DER.
    pub certificate: Vec<u8>,
    /// The CA's key, PKCS #8.
    pub key: Vec<u8>,
}

impl Store {
    /// Opens it, and makes it if it is new.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let db = Connection::open(path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        // A crash of the daemon loses nothing; a power cut loses the newest entries, and with them
        // nothing that still lives.
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS cluster (
                 one INTEGER PRIMARY KEY CHECK (one = 1),
                 name TEXT NOT NULL, certificate BLOB NOT NULL, key BLOB NOT NULL,
                 next_job INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS node (
                 id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
                 uid INTEGER NOT NULL, gid INTEGER NOT NULL, mode INTEGER NOT NULL,
                 slots INTEGER, wanted TEXT NOT NULL, is_virtual INTEGER NOT NULL,
                 may_live INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS job (id INTEGER PRIMARY KEY, info BLOB NOT NULL);
             CREATE TABLE IF NOT EXISTS token (hash BLOB PRIMARY KEY, until_s INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS machine (
                 mac TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, address TEXT,
                 image TEXT, is_approved INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS interface (
                 name TEXT PRIMARY KEY, address TEXT NOT NULL, prefix INTEGER NOT NULL,
                 is_proxy INTEGER NOT NULL, gateway TEXT, sets_address INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS setting (key TEXT PRIMARY KEY, value TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS retired (id INTEGER PRIMARY KEY);
             CREATE TABLE IF NOT EXISTS node_group (
                 node INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (node, name));
             CREATE TABLE IF NOT EXISTS group_image (name TEXT PRIMARY KEY, image TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS certificate (
                 node INTEGER PRIMARY KEY, valid BLOB NOT NULL);
             CREATE TABLE IF NOT EXISTS adoption (
                 one INTEGER PRIMARY KEY CHECK (one = 1),
                 until_s INTEGER NOT NULL, names TEXT, is_ordered INTEGER NOT NULL, last TEXT);",
        )?;
        // Made by a version that did not keep this: then every node may have been a member.
        let columns = db.prepare("SELECT * FROM node")?.column_count();
        if columns == NODE_COLUMNS - 1 {
            db.execute_batch("ALTER TABLE node ADD COLUMN may_live INTEGER NOT NULL DEFAULT 1")?;
        }
        Ok(Store { db })
    }

    /// The cluster's secrets, if it has been initialised.
    ///
    /// # Errors
    /// SQLite's.
    pub fn secrets(&self) -> Result<Option<ClusterSecrets>, StoreError> {
        let row = self
            .db
            .query_row("SELECT name, certificate, key FROM cluster", [], |row| {
                Ok(ClusterSecrets {
                    cluster: row.get(0)?,
                    certificate: row.get(1)?,
                    key: row.get(2)?,
                })
            })
            .optional()?;
        Ok(row)
    }

    /// Keeps a new cluster's secrets.
    ///
    /// # Errors
    /// SQLite's; there can be only one cluster.
    pub fn initialise(&self, secrets: &ClusterSecrets) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT INTO cluster VALUES (1, ?1, ?2, ?3, 1)",
            params![secrets.cluster, secrets.certificate, secrets.key],
        )?;
        Ok(())
    }

    /// A range of job numbers that nobody has had: first, and one more than the last.
    ///
    /// # Errors
    /// SQLite's.
    pub fn grant_jobs(&self) -> Result<(u64, u64), StoreError> {
        let end: i64 = self.db.query_row(
            "UPDATE cluster SET next_job = next_job + ?1 RETURNING next_job",
            params![i64::try_from(JOB_NUMBERS_PER_GRANT).unwrap_or(i64::MAX)],
            |row| row.get(0),
        )?;
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        Ok((end - JOB_NUMBERS_PER_GRANT, end))
    }

    /// All nodes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn nodes(&self) -> Result<NodeTable, StoreError> {
        let mut table = NodeTable::default();
        let mut query = self.db.prepare(
            "SELECT id, name, uid, gid, mode, slots, wanted, is_virtual, may_live
             FROM node ORDER BY id",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(1)?;
            let node = table.insert(NodeId(row.get(0)?), name);
            (node.uid, node.gid, node.mode) = (row.get(2)?, row.get(3)?, row.get(4)?);
            node.slots = row.get(5)?;
            node.wanted = wanted_from(&row.get::<_, String>(6)?);
            node.is_virtual = row.get(7)?;
            node.may_live = row.get(8)?;
        }
        let mut query = self.db.prepare("SELECT node, name FROM node_group")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(node) = table.get_mut(NodeId(row.get(0)?)) {
                node.groups.insert(row.get(1)?);
            }
        }
        let mut query = self.db.prepare("SELECT id FROM retired")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            table.retire(NodeId(row.get(0)?));
        }
        Ok(table)
    }

    /// Forgets a node for good; its number is remembered as one that is never given again.
    ///
    /// # Errors
    /// SQLite's.
    pub fn drop_node(&self, id: NodeId) -> Result<(), StoreError> {
        let together = self.db.unchecked_transaction()?;
        together.execute("INSERT OR IGNORE INTO retired VALUES (?1)", params![id.0])?;
        together.execute("DELETE FROM node WHERE id = ?1", params![id.0])?;
        together.execute("DELETE FROM node_group WHERE node = ?1", params![id.0])?;
        together.execute("DELETE FROM certificate WHERE node = ?1", params![id.0])?;
        together.commit()?;
        Ok(())
    }

    /// Keeps which certificate a node has from now on; an empty one: none.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_certificate(&self, id: NodeId, certificate: &[u8]) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT OR REPLACE INTO certificate VALUES (?1, ?2)",
            params![id.0, certificate],
        )?;
        Ok(())
    }

    /// Whether this is the last certificate that a node was given. What an earlier version gave was
    /// not kept, and counts.
    ///
    /// # Errors
    /// SQLite's.
    pub fn is_last_certificate(&self, id: NodeId, certificate: &[u8]) -> Result<bool, StoreError> {
        let mut query = self
            .db
            .prepare_cached("SELECT valid FROM certificate WHERE node = ?1")?;
        let last: Option<Vec<u8>> = query.query_row([id.0], |row| row.get(0)).optional()?;
        Ok(last.is_none_or(|last| last == certificate))
    }

    /// Keeps the groups that a node is in.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_groups(&self, node: &Node) -> Result<(), StoreError> {
        let together = self.db.unchecked_transaction()?;
        together.execute("DELETE FROM node_group WHERE node = ?1", params![node.id.0])?;
        for group in &node.groups {
            let values = params![node.id.0, group];
            together.execute("INSERT INTO node_group VALUES (?1, ?2)", values)?;
        }
        together.commit()?;
        Ok(())
    }

    /// Keeps a node.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_node(&self, node: &Node) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT OR REPLACE INTO node VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                node.id.0,
                node.name,
                node.uid,
                node.gid,
                node.mode,
                node.slots,
                wanted_name(node.wanted),
                node.is_virtual,
                node.may_live
            ],
        )?;
        Ok(())
    }

    /// Detached jobs that have ended, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn jobs(&self) -> Result<Vec<JobInfo>, StoreError> {
        let mut query = self.db.prepare("SELECT info FROM job ORDER BY id")?;
        let blobs: Vec<Vec<u8>> = query
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        // A job that another version wrote is not worth failing for.
        Ok(blobs
            .iter()
            .filter_map(|blob| postcard::from_bytes(blob).ok())
            .collect())
    }

    /// Keeps a job. Returns the jobs whose log files may go, being too old.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_job(&self, job: &JobInfo) -> Result<Vec<JobId>, StoreError> {
        let id = i64::try_from(job.job.0).unwrap_or(i64::MAX);
        let blob = postcard::to_stdvec(job)?;
        self.db.execute(
            "INSERT OR REPLACE INTO job VALUES (?1, ?2)",
            params![id, blob],
        )?;
        let mut query = self.db.prepare(
            "DELETE FROM job WHERE id NOT IN (SELECT id FROM job ORDER BY id DESC LIMIT ?1)
             RETURNING id",
        )?;
        let old: Vec<i64> = query
            .query_map(params![KEPT_JOBS], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        Ok(old.into_iter().map(|id| JobId(id.unsigned_abs())).collect())
    }

    /// Keeps a token's hash until a time, in seconds since the Epoch.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_token(&self, hash: &[u8; 32], until_s: i64) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT OR REPLACE INTO token VALUES (?1, ?2)",
            params![hash.as_slice(), until_s],
        )?;
        Ok(())
    }

    /// Whether a token with this hash is valid now, in seconds since the Epoch.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has_token(&self, hash: &[u8; 32], now_s: i64) -> Result<bool, StoreError> {
        self.db
            .execute("DELETE FROM token WHERE until_s < ?1", params![now_s])?;
        let found = self
            .db
            .query_row(
                "SELECT 1 FROM token WHERE hash = ?1",
                params![hash.as_slice()],
                |_| Ok(()),
            )
            .optional()?;
        Ok(found.is_some())
    }
}

fn wanted_name(wanted: Wanted) -> &'static str {
    match wanted {
        Wanted::Up => "up",
        Wanted::Drain => "drain",
        Wanted::Unavailable => "unavailable",
        Wanted::Error => "error",
    }
}

fn wanted_from(name: &str) -> Wanted {
    match name {
        "drain" => Wanted::Drain,
        "unavailable" => Wanted::Unavailable,
        "error" => Wanted::Error,
        _ => Wanted::Up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let secrets = ClusterSecrets {
            cluster: "c".into(),
            certificate: vec![1],
            key: vec![2],
        };
        store.initialise(&secrets).unwrap();
        store
    }

    #[test]
    fn job_numbers_are_never_granted_twice() {
        let store = store();
        let (first, end) = store.grant_jobs().unwrap();
        assert!(first < end);
        assert_eq!(store.grant_jobs().unwrap().0, end);
    }

    #[test]
    fn nodes_come_back_as_they_were() {
        let store = store();
        let mut table = NodeTable::default();
        let node = table.enrol("n3").unwrap();
        (node.mode, node.slots, node.wanted) = (0o100, Some(9), Wanted::Drain);
        store.put_node(node).unwrap();
        let read = store.nodes().unwrap();
        assert_eq!(read.by_name("n3").unwrap(), table.by_name("n3").unwrap());
    }

    #[test]
    fn a_removed_nodes_number_is_not_given_again_by_a_new_head() {
        let store = store();
        let mut table = NodeTable::default();
        let node = table.enrol("n3").unwrap();
        node.groups.insert("gpu".into());
        store.put_node(node).unwrap();
        store.put_groups(node).unwrap();
        let (id, groups) = (node.id, node.groups.clone());
        assert_eq!(store.nodes().unwrap().get(id).unwrap().groups, groups);
        store.drop_node(id).unwrap();
        let mut read = store.nodes().unwrap();
        assert!(read.by_name("n3").is_none());
        let again = read.enrol("n3").unwrap();
        assert_ne!(again.id, id);
        assert!(again.groups.is_empty());
    }

    #[test]
    fn only_the_last_certificate_counts() {
        let store = store();
        let id = NodeId(3);
        let is_last = |bytes: &[u8]| store.is_last_certificate(id, bytes).unwrap();
        assert!(is_last(b"of an earlier version"));
        store.put_certificate(id, b"first").unwrap();
        assert!(is_last(b"first") && !is_last(b"of an earlier version"));
        store.put_certificate(id, b"second").unwrap();
        assert!(is_last(b"second") && !is_last(b"first"));
        store.put_certificate(id, b"").unwrap();
        assert!(!is_last(b"second"));
        assert!(store.is_last_certificate(NodeId(4), b"first").unwrap());
    }

    #[test]
    fn tokens_end() {
        let store = store();
        store.put_token(&[7; 32], 100).unwrap();
        assert!(store.has_token(&[7; 32], 99).unwrap());
        assert!(!store.has_token(&[8; 32], 99).unwrap());
        assert!(!store.has_token(&[7; 32], 101).unwrap());
    }

    #[test]
    fn there_is_one_cluster() {
        let store = store();
        let again = ClusterSecrets {
            cluster: "d".into(),
            certificate: vec![],
            key: vec![],
        };
        assert!(store.initialise(&again).is_err());
        assert_eq!(store.secrets().unwrap().unwrap().cluster, "c");
    }
}
