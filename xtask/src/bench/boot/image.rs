//! What machines have to fetch.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use super::server::Head;
use crate::bench::ground::report::Report;
use crate::debs::Kernel;

const AIM_OF_INITRAMFS: f64 = 4e6;

/// Builds the default image, and says what it is called.
pub(super) fn build(head: &Head<'_>, target: &Path, report: &mut Report) -> Result<String> {
    let kernel = Kernel::fetch(target)?;
    let (image, modules) = (
        kernel.image.to_string_lossy(),
        kernel.modules.to_string_lossy(),
    );
    let words = ["image", "build", "--kernel", &image, "--modules", &modules];
    let started = Instant::now();
    let text = head.wiglaf(&[&words[..], &["--json"]].concat())?;
    let took_s = started.elapsed().as_secs_f64();
    let manifest: serde_json::Value =
        serde_json::from_str(&text).context("the image's manifest")?;
    let id = manifest.get("id").and_then(serde_json::Value::as_str);
    let id = id.context("the image has no ID")?.to_owned();
    head.wiglaf(&["image", "use", &id])?;
    let dir = head.dir.join("state/images").join(&id);
    let size = |name: &str| -> Result<f64> {
        let path = dir.join(name);
        let metadata = path
            .metadata()
            .with_context(|| path.display().to_string())?;
        Ok(metadata.len() as f64)
    };
    let (kernel_bytes, initramfs_bytes) = (size("kernel")?, size("initramfs")?);
    report.aim(
        "default initramfs",
        format!("≤ {:.0} MB", AIM_OF_INITRAMFS / 1e6),
        format!("{:.2} MB", initramfs_bytes / 1e6),
        initramfs_bytes <= AIM_OF_INITRAMFS,
    );
    let version = kernel.modules.file_name().unwrap_or_default();
    report.note(format!(
        "The image is of Debian's kernel {}, {:.2} MB; `wiglaf image build` took {took_s:.1} s.",
        version.to_string_lossy(),
        kernel_bytes / 1e6
    ));
    Ok(id)
}
