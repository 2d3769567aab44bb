//! The tables of machines that boot from the network.

use std::net::Ipv4Addr;

use rusqlite::{OptionalExtension, Row, params};
use wiglaf_wire::boot::{AddressService, BootInterface, Mac};

use super::{Store, StoreError};
use crate::machines::{Machine, Machines, Served};
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
        store.drop_machine(mac).unwrap();
        store.drop_interface("eth1").unwrap();
        let read = store.machines().unwrap();
        assert!(read.list().is_empty() && read.served().next().is_none());
    }
}
