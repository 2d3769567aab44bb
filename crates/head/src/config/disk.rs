//! What nodes use their own disks for.

use serde::{Deserialize, Serialize};
use wiglaf_wire::disk::{Amount, AmountError, DiskRule, Purpose};
use wiglaf_wire::nodeset::{NodeSet, NodeSetError};

/// What a layout may look like, for whoever has none.
pub(crate) const EXAMPLE: &str = "[[disk]]\nnodes = \"n[1-4]\"\ndevice = \"first\"\nswap = \"2G\"\n\
                                  scratch = \"rest\"";

/// One disk of each of some nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Node set; all if left out.
    pub nodes: Option<String>,
    /// `first`, a device's path, or what is written on it: its serial number or WWN.
    pub device: String,
    /// How much is swap.
    pub swap: Option<Size>,
    /// How much tasks see as `/scratch`.
    pub scratch: Option<Size>,
    /// How much they see as `/data`.
    pub data: Option<Size>,
}

/// How much of a disk, as it is written: `2G`, `50%` or `rest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    amount: Amount,
    text: String,
}

impl TryFrom<String> for Size {
    type Error = AmountError;

    fn try_from(text: String) -> Result<Size, AmountError> {
        let amount = text.parse()?;
        Ok(Size { amount, text })
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.text
    }
}

impl DiskConfig {
    /// What it wants of this node, if anything. `group` gives the members of a group of nodes.
    ///
    /// # Errors
    /// Its node set is none.
    pub(crate) fn rule(
        &self,
        node: &str,
        group: &dyn Fn(&str) -> Option<Vec<String>>,
    ) -> Result<Option<DiskRule>, NodeSetError> {
        if let Some(nodes) = &self.nodes
            && !NodeSet::parse(nodes, group)?.contains(node)
        {
            return Ok(None);
        }
        let wanted = [
            (Purpose::Swap, &self.swap),
            (Purpose::Scratch, &self.scratch),
            (Purpose::Data, &self.data),
        ];
        let parts = wanted.into_iter();
        let parts = parts.filter_map(|(purpose, size)| Some((purpose, size.as_ref()?.amount)));
        Ok(Some(DiskRule {
            device: self.device.clone(),
            parts: parts.collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn read(text: &str) -> Result<Vec<DiskConfig>, toml::de::Error> {
        toml::from_str::<Config>(text).map(|config| config.disk)
    }

    #[test]
    fn the_example_is_valid() {
        let disks = read(EXAMPLE).unwrap();
        let rule = |node: &str| disks[0].rule(node, &|_| None).unwrap();
        assert_eq!(rule("n5"), None);
        let rule = rule("n4").unwrap();
        assert_eq!(rule.device, "first");
        let expected = [
            (Purpose::Swap, Amount::Mib(2048)),
            (Purpose::Scratch, Amount::Rest),
        ];
        assert_eq!(rule.parts, expected);
    }

    #[test]
    fn what_is_meant_otherwise_is_an_error() {
        for text in [
            "[[disk]]\nswap = \"2G\"\n",
            "[[disk]]\ndevice = \"first\"\nswap = \"two\"\n",
            "[[disk]]\ndevice = \"first\"\nhome = \"2G\"\n",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let disks = read("[[disk]]\nnodes = \"@gpu\"\ndevice = \"first\"\n").unwrap();
        assert!(disks[0].rule("n1", &|_| None).is_err());
        let members = |group: &str| (group == "gpu").then(|| vec!["n1".to_owned()]);
        assert!(disks[0].rule("n1", &members).unwrap().is_some());
        assert!(disks[0].rule("n2", &members).unwrap().is_none());
    }
}
