//! Names, as the head tells them, into the files that tasks see.

use std::net::IpAddr;

use wiglaf_wire::names::Names;

use super::super::names::{Kind, hosts, resolver};
use super::{Agent, Shown, log};
use crate::root::{HOSTS, NameFiles, RESOLVER, RootError, show_in};

/// Of the machine's own.
const OWN_RESOLVER: &str = "/etc/resolv.conf";
/// The longest that counts.
const MAX_OWN_BYTES: usize = 16 << 10;

/// What a node has for names.
pub(super) struct NodeNames {
    files: NameFiles,
    head: IpAddr,
    kind: Kind,
    /// `None`: tasks see the head's files.
    told: Option<Box<Names>>,
    /// What is written.
    written: Option<(String, Vec<u8>)>,
}

impl NodeNames {
    pub(super) fn new(files: NameFiles, head: IpAddr, kind: Kind) -> NodeNames {
        NodeNames {
            files,
            head: head.to_canonical(),
            kind,
            told: None,
            written: None,
        }
    }

    fn write(&mut self) -> Result<(), RootError> {
        let Some(told) = &self.told else {
            return Ok(());
        };
        let own = match self.kind {
            Kind::Beside => std::fs::read(OWN_RESOLVER).unwrap_or_default(),
            Kind::Booted | Kind::Virtual => Vec::new(),
        };
        let own = &own[..own.len().min(MAX_OWN_BYTES)];
        let texts = (
            hosts(told, self.head),
            resolver(told, self.head, self.kind, own),
        );
        if self.written.as_ref() != Some(&texts) {
            self.files.write(HOSTS, texts.0.as_bytes())?;
            self.files.write(RESOLVER, &texts.1)?;
            self.written = Some(texts);
        }
        Ok(())
    }
}

impl Agent {
    /// The head tells names.
    pub(super) fn hear_names(&mut self, names: Option<Box<Names>>) {
        self.names.told = names;
        let shown = self.names.told.is_some();
        // First the files: links must not lead nowhere.
        let done = self.names.write().and_then(|()| match &mut self.files {
            Shown::Views(views) => {
                views.show_names(shown);
                Ok(())
            }
            Shown::Root(root) => show_in(root, shown),
        });
        if let Err(error) = done {
            log(&self.name, &error);
        }
    }

    /// The machine's own resolver may be another by now.
    pub(super) fn look_at_own_resolver(&mut self) {
        if self.names.kind == Kind::Beside
            && let Err(error) = self.names.write()
        {
            log(&self.name, &error);
        }
    }
}
