//! The tables of machines that boot from the network.

use std::net::Ipv4Addr;

use rusqlite::{OptionalExtension, Row, params};
use wiglaf_wire::boot::{AddressService, BootInterface, Mac};

use super::{Store, StoreError};
use crate::machines::{Machine, Machines, NamePattern, Now, Served, Window};
use crate::placement::Refusal;

/// The key of the interface that leads outward.
const OUTER: &str = "gateway";
/// The key of the image that machines boot for which nothing else is said.
const IMAGE: &str = "image";

impl Store {
    /// All that was adopted and all that is served.
    ///
    /// # Errors
    /// SQLite's; an interface that can't be served any more is left out.
    pub fn machines(&self) -> Result<Machines, StoreError> {
        let mut query = self
            .db
            .prepare("SELECT mac, name, address, image, is_approved FROM machine")?;
        let known = query
            .query_map([], machine_from)?
            .collect::<Result<_, _>>()?;
        let image = self.setting(IMAGE)?;
        let mut machines = Machines::new(known, image);
        let mut query = self.db.prepare("SELECT name, image FROM group_image")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let (group, image): (String, String) = (row.get(0)?, row.get(1)?);
            machines.use_group_image(&group, &image);
        }
        let outer = self.setting(OUTER)?;
        let mut query = self.db.prepare(
            "SELECT name, address, prefix, is_proxy, gateway, sets_address FROM interface",
        )?;
        let rows = query.query_map([], served_from)?;
        for served in rows {
            let served = served?;
            let enabled: Result<_, Refusal> =
                machines.enable(served.interface, served.sets_address);
            if let Err(refusal) = enabled {
                crate::daemon::log(&refusal.message);
            }
        }
        if let Err(refusal) = machines.lead_outward(outer) {
            crate::daemon::log(&refusal.message);
        }
        Ok(machines)
    }

    fn setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        let mut query = self
            .db
            .prepare("SELECT value FROM setting WHERE key = ?1")?;
        Ok(query.query_row([key], |row| row.get(0)).optional()?)
    }

    /// Keeps by which interface nodes reach the outer world.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_outer(&self, outer: Option<&str>) -> Result<(), StoreError> {
        match outer {
            Some(outer) => self.db.execute(
                "INSERT OR REPLACE INTO setting VALUES (?1, ?2)",
                params![OUTER, outer],
            )?,
            None => self
                .db
                .execute("DELETE FROM setting WHERE key = ?1", [OUTER])?,
        };
        Ok(())
    }

    /// Keeps a machine.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_machine(&self, machine: &Machine) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT OR REPLACE INTO machine VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                machine.mac.to_string(),
                machine.name,
                machine.address.map(|address| address.to_string()),
                machine.image,
                machine.is_approved,
            ],
        )?;
        Ok(())
    }

    /// Forgets a machine.
    ///
    /// # Errors
    /// SQLite's.
    pub fn drop_machine(&self, mac: Mac) -> Result<(), StoreError> {
        self.db
            .execute("DELETE FROM machine WHERE mac = ?1", [mac.to_string()])?;
        Ok(())
    }

    /// Keeps that an interface is served.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_interface(&self, served: &Served) -> Result<(), StoreError> {
        let interface = &served.interface;
        self.db.execute(
            "INSERT OR REPLACE INTO interface VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                interface.name,
                interface.address.to_string(),
                interface.prefix,
                interface.service == AddressService::Proxy,
                interface.gateway.map(|gateway| gateway.to_string()),
                served.sets_address,
            ],
        )?;
        Ok(())
    }

    /// Keeps that it is not.
    ///
    /// # Errors
    /// SQLite's.
    pub fn drop_interface(&self, name: &str) -> Result<(), StoreError> {
        self.db
            .execute("DELETE FROM interface WHERE name = ?1", [name])?;
        Ok(())
    }

    /// Keeps what the nodes of a group boot.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_group_image(&self, group: &str, image: &str) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT OR REPLACE INTO group_image VALUES (?1, ?2)",
            params![group, image],
        )?;
        Ok(())
    }

    /// Takes back what was said of a group's nodes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn drop_group_image(&self, group: &str) -> Result<(), StoreError> {
        self.db
            .execute("DELETE FROM group_image WHERE name = ?1", [group])?;
        Ok(())
    }

    /// Keeps that every machine is adopted that comes, and until when.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_window(&self, window: Option<&Window>) -> Result<(), StoreError> {
        match window {
            Some(window) => self.db.execute(
                "INSERT OR REPLACE INTO adoption VALUES (1, ?1, ?2, ?3, ?4)",
                params![
                    window.until.wall_s,
                    window.names.as_ref().map(ToString::to_string),
                    window.is_ordered,
                    window.last.map(|mac| mac.to_string()),
                ],
            )?,
            None => self.db.execute("DELETE FROM adoption", [])?,
        };
        Ok(())
    }

    /// The window that an earlier head has opened, over or not.
    ///
    /// # Errors
    /// SQLite's.
    pub fn window(&self) -> Result<Option<Window>, StoreError> {
        let mut query = self
            .db
            .prepare("SELECT until_s, names, is_ordered, last FROM adoption")?;
        Ok(query.query_row([], window_from).optional()?)
    }

    /// Keeps what machines boot for which nothing else is said.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_image(&self, image: &str) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT OR REPLACE INTO setting VALUES (?1, ?2)",
            params![IMAGE, image],
        )?;
        Ok(())
    }
}

fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}

fn address_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Ipv4Addr>> {
    match row.get::<_, Option<String>>(column)? {
        Some(_) => parsed(row, column).map(Some),
        None => Ok(None),
    }
}

fn machine_from(row: &Row<'_>) -> rusqlite::Result<Machine> {
    Ok(Machine {
        mac: parsed(row, 0)?,
        name: row.get(1)?,
        address: address_at(row, 2)?,
        image: row.get(3)?,
        is_approved: row.get(4)?,
    })
}

fn window_from(row: &Row<'_>) -> rusqlite::Result<Window> {
    let names: Option<String> = row.get(1)?;
    let last: Option<String> = row.get(3)?;
    Ok(Window {
        until: Now {
            // Of a clock that may have started anew since.
            ms: 0,
            wall_s: row.get(0)?,
        },
        names: names.and_then(|names| NamePattern::try_from(names).ok()),
        is_ordered: row.get(2)?,
        last: last.and_then(|mac| mac.parse().ok()),
    })
}

fn served_from(row: &Row<'_>) -> rusqlite::Result<Served> {
    let address = parsed(row, 1)?;
    let is_proxy: bool = row.get(3)?;
    Ok(Served {
        interface: BootInterface {
            name: row.get(0)?,
            address,
            prefix: row.get(2)?,
            service: if is_proxy {
                AddressService::Proxy
            } else {
                AddressService::Full
            },
            // It follows from the rest.
            unknown: (address, address),
            gateway: address_at(row, 4)?,
        },
        sets_address: row.get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_window_is_open_under_the_next_head_and_no_longer_than_it_was_meant_to_be() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let at = |ms, wall_s| Now { ms, wall_s };
        let (minute, first) = (60_000, Mac([2, 0, 0, 0, 0, 1]));
        let mut machines = Machines::default();
        let names = NamePattern::try_from("gpu%d".to_owned()).ok();
        machines.adopt_all(at(5_000_000, 1_000), 10 * minute, names, true);
        let mut open = machines.last_window().cloned().unwrap();
        open.last = Some(first);
        store.put_window(Some(&open)).unwrap();

        // The head's machine was started anew: its one clock is at its beginning.
        let mut machines = Machines::default();
        machines.reopen(at(9_000, 1_060), store.window().unwrap().unwrap());
        let window = machines.last_window().cloned().unwrap();
        assert_eq!(window.until, at(9_000 + 9 * minute, 1_600));
        assert_eq!((&window.names, window.last), (&open.names, Some(first)));
        assert!(window.is_ordered);

        let mut machines = Machines::default();
        machines.reopen(at(9_000, 1_600), store.window().unwrap().unwrap());
        assert_eq!(machines.last_window(), None);
        // The clock was set back by years.
        machines.reopen(
            at(9_000, 0),
            Window {
                until: at(0, i64::MAX),
                ..open
            },
        );
        let window = machines.last_window().unwrap();
        assert_eq!(window.until.ms, 9_000 + 24 * 60 * minute);
        store.put_window(None).unwrap();
        assert_eq!(store.window().unwrap(), None);
    }

    #[test]
    fn machines_come_back_as_they_were() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let interface = BootInterface {
            name: "eth1".into(),
            address: Ipv4Addr::new(10, 77, 0, 1),
            prefix: 24,
            service: AddressService::Full,
            unknown: (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
            gateway: None,
        };
        let mut machines = Machines::default();
        store
            .put_interface(machines.enable(interface, true).unwrap())
            .unwrap();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        store
            .put_machine(machines.adopt(mac, "n1").unwrap())
            .unwrap();
        store.put_image("default-1").unwrap();
        machines.use_image("default-1");
        store.put_group_image("gpu", "gpu-1").unwrap();
        machines.use_group_image("gpu", "gpu-1");
        let read = store.machines().unwrap();
        assert_eq!(
            read.settings("c", "", 1, 2),
            machines.settings("c", "", 1, 2)
        );
        store.drop_group_image("gpu").unwrap();
        assert!(store.machines().unwrap().group_images().is_empty());
        store.drop_machine(mac).unwrap();
        store.drop_interface("eth1").unwrap();
        let read = store.machines().unwrap();
        assert!(read.list().is_empty() && read.served().next().is_none());
    }
}
