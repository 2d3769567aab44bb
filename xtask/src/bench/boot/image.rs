//! What machines have to fetch.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::server::Head;
use crate::bench::ground::report::Report;
use crate::debs::Kernel;

const AIM_OF_INITRAMFS: f64 = 4e6;

/// Builds the default image, of the kernel for virtual machines and of the one for all machines,
/// and says what the first is called.
pub(super) fn build(head: &Head<'_>, target: &Path, report: &mut Report) -> Result<String> {
    build_of(
        head,
        &Kernel::fetch_generic(target)?,
        "all machines",
        report,
    )?;
    let id = build_of(head, &Kernel::fetch(target)?, "virtual machines", report)?;
    head.wiglaf(&["image", "use", &id])?;
    Ok(id)
}

fn build_of(
    head: &Head<'_>,
    kernel: &Kernel,
    machines: &str,
    report: &mut Report,
) -> Result<String> {
    let (image, modules) = (
        kernel.image.to_string_lossy(),
        kernel.modules.to_string_lossy(),
    );
    let words = ["image", "build", "--kernel", &image, "--modules", &modules];
    let started = Instant::now();
    let text = head.wiglaf(&[&words[..], &["--json"]].concat())?;
    let took_s = started.elapsed().as_secs_f64();
    let manifest: Value = serde_json::from_str(&text).context("the image's manifest")?;
    let number = |path: &str| -> Result<f64> {
        let number = manifest.pointer(path).and_then(Value::as_f64);
        number.with_context(|| format!("no {path} in {manifest}"))
    };
    let least = number("/by_card/smallest")?;
    let most = number("/by_card/largest")?;
    report.aim(
        &format!("default initramfs, kernel for {machines}, as machines fetch it"),
        format!("≤ {:.0} MB", AIM_OF_INITRAMFS / 1e6),
        format!(
            "{:.2} to {:.2} MB, by network card ({})",
            least / 1e6,
            most / 1e6,
            number("/by_card/cards")?
        ),
        most <= AIM_OF_INITRAMFS,
    );
    let version = kernel.modules.file_name().unwrap_or_default();
    report.note(format!(
        "Debian's kernel {} has {:.2} MB, and the whole initramfs for it {:.2} MB, which machines \
         fetch that don't tell their card; `wiglaf image build` took {took_s:.1} s.",
        version.to_string_lossy(),
        number("/kernel/size")? / 1e6,
        number("/initramfs/size")? / 1e6,
    ));
    let id = manifest.get("id").and_then(Value::as_str);
    Ok(id.context("the image has no ID")?.to_owned())
}
