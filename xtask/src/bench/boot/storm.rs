//! A thousand clients fetch script, kernel and initramfs at once, from Wiglaf and from nginx.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Effort;
use super::client::{self, Order};
use super::server::Head;
use super::wire::{self, End, SERVER, Wire};
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::report::Report;
use crate::bench::ground::statistics::Samples;

pub(super) const NGINX: &str = "/usr/sbin/nginx";
const NGINX_PORT: u16 = 8080;
const NGINX_ONE_PORT: u16 = 8081;
/// Where the boot service serves images.
const HTTP_PORT: u16 = 7495;
const START: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(300);
const AIM_OF_NGINX: f64 = 0.9;
/// Of the slowest machine to the median one.
const AIM_OF_FAIRNESS: f64 = 1.5;
const AIM_OF_MEMORY: f64 = 256e6;

struct Contender {
    name: &'static str,
    group: Group,
    port: u16,
    folder: String,
    figures: Figures,
}

#[derive(Default)]
struct Figures {
    mb_per_s: Samples,
    median_s: Samples,
    slowest_s: Samples,
    server_cpu_s: Samples,
    client_cpu_s: Samples,
    served: usize,
    failed: usize,
    failure: Option<String>,
}

pub(super) fn measure(
    head: &Head<'_>,
    image: &str,
    machines: &[(String, Ipv4Addr)],
    effort: &Effort,
    report: &mut Report,
) -> Result<()> {
    let wire = &head.server.wire;
    let stage = wire.stage;
    println!("\n=== a storm of {} clients", effort.storm_clients);
    wire.populate(machines, &stage.dir.join("neighbours"))?;
    let files = head.dir.join("state/images").join(image);
    let root = copy(&stage.dir, &files, machines)?;
    let paths = [files.join("kernel"), files.join("initramfs")];
    serve(wire, &root, NGINX_PORT, "auto")?;
    serve(wire, &root, NGINX_ONE_PORT, "1")?;
    let clients: Vec<_> = machines
        .iter()
        .cycle()
        .take(effort.storm_clients)
        .cloned()
        .collect();
    let contender = |name, group, port, folder: String| Contender {
        name,
        group,
        port,
        folder,
        figures: Figures::default(),
    };
    let mut contenders = [
        contender("Wiglaf", Group::Head, HTTP_PORT, format!("/image/{image}")),
        contender("nginx", Group::Peer, NGINX_PORT, String::new()),
        contender(
            "nginx, one worker",
            Group::Peer,
            NGINX_ONE_PORT,
            String::new(),
        ),
    ];
    let count = contenders.len();
    for round in 0..effort.storm_rounds {
        for turn in 0..count {
            let contender = &mut contenders[(turn + round) % count];
            let order = Order {
                server: SocketAddrV4::new(SERVER, contender.port),
                folder: contender.folder.clone(),
                kernel: paths[0].to_string_lossy().into_owned(),
                initramfs: paths[1].to_string_lossy().into_owned(),
                clients: clients.clone(),
            };
            if let Err(error) = once(wire, &order, contender) {
                stage.check_alive()?;
                println!("{}: {error:#}", contender.name);
                contender.figures.failure = Some(format!("{error:#}"));
            }
        }
    }
    let lengths: Vec<u64> = paths
        .iter()
        .map(|path| path.metadata().map(|metadata| metadata.len()))
        .collect::<Result<_, _>>()?;
    write(&contenders, machines.len(), &lengths, effort, report);
    let (boot, rest) = head.peak_bytes()?;
    report.aim(
        "storm, memory of the boot service and of the head's other processes, the most ever resident",
        format!("< {:.0} MB", AIM_OF_MEMORY / 1e6),
        format!("{:.1} and {:.1} MB", boot as f64 / 1e6, rest as f64 / 1e6),
        ((boot + rest) as f64) < AIM_OF_MEMORY,
    );
    Ok(())
}

/// What nginx serves: the same files by links, and a script for each machine.
fn copy(dir: &Path, files: &Path, machines: &[(String, Ipv4Addr)]) -> Result<PathBuf> {
    let root = dir.join("nginx");
    fs::create_dir(&root)?;
    fs::create_dir(root.join("script"))?;
    for name in ["kernel", "initramfs"] {
        fs::hard_link(files.join(name), root.join(name))
            .with_context(|| format!("can't link {name} of {}", files.display()))?;
    }
    for (mac, _) in machines {
        let mac = mac.replace(':', "-");
        // As long as Wiglaf's own.
        let folder = format!("http://{SERVER}:{NGINX_PORT}");
        let script = format!(
            "#!ipxe\necho booting {mac}\nkernel {folder}/kernel initrd=initramfs BOOTIF=01-{mac} \
             || goto again\ninitrd {folder}/initramfs || goto again\nboot || goto again\n:again\n\
             echo that failed; trying again\nsleep 2\nchain --replace {folder}/script/{mac} || goto \
             again\n"
        );
        fs::write(root.join("script").join(&mac), script)?;
    }
    Ok(root)
}

fn serve(wire: &Wire<'_>, root: &Path, port: u16, workers: &str) -> Result<()> {
    let stage = wire.stage;
    let dir = stage.dir.join(format!("nginx.{port}"));
    fs::create_dir(&dir)?;
    let at = |name: &str| dir.join(name).display().to_string();
    let config = format!(
        "user root; worker_processes {workers}; worker_rlimit_nofile 8192; daemon off; pid {pid}; error_log {errors};\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;\n\
         client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};\n\
         uwsgi_temp_path {dir}; scgi_temp_path {dir};\n\
         server {{ listen {SERVER}:{port}; root {root}; }} }}\n",
        pid = at("pid"),
        errors = at("errors"),
        dir = dir.display(),
        root = root.display(),
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, config)?;
    stage.groups.enter(Group::Peer)?;
    let mut command = wire.at_server(NGINX);
    command
        .arg("-c")
        .arg(&path)
        .stderr(wire::log(stage, "nginx.err")?);
    spawn(&mut command)?;
    let deadline = Instant::now() + START;
    while !dir.join("pid").exists() {
        if Instant::now() > deadline {
            let said = fs::read_to_string(stage.dir.join("nginx.err")).unwrap_or_default();
            bail!("nginx does not start: {}", said.trim());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn once(wire: &Wire<'_>, order: &Order, contender: &mut Contender) -> Result<()> {
    let stage = wire.stage;
    let mut output = None;
    let clients_before = stage.groups.cpu_ms(Group::Nodes)?;
    let cpu_ms = stage.cpu_ms_of(&[contender.group], || {
        stage.groups.enter(Group::Nodes)?;
        let own = std::env::current_exe()?;
        let mut command = wire.at(End::Crowd, &own.to_string_lossy());
        let said = stage.dir.join("fetch.err");
        command
            .args(["bench", client::NAME])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&said)?);
        let mut child = spawn(&mut command)?;
        let watched = stage.watchdog.watch(&child, TIMEOUT)?;
        let mut input = child.stdin.take().context("its standard input")?;
        input.write_all(order.text().as_bytes())?;
        drop(input);
        let ended = child.wait_with_output()?;
        watched.end(&command)?;
        if !ended.status.success() {
            let said = fs::read_to_string(&said).unwrap_or_default();
            bail!("the machines failed: {}", said.trim());
        }
        output = Some(String::from_utf8_lossy(&ended.stdout).into_owned());
        Ok(())
    })?;
    let client_cpu_ms = stage.groups.cpu_ms(Group::Nodes)? - clients_before;
    let text = output.context("the machines said nothing")?;
    let figures = &mut contender.figures;
    let mut lines = text.lines();
    let (took_us, bytes) = lines
        .next()
        .and_then(|line| line.split_once(' '))
        .context("the machines said nothing")?;
    let (took_us, bytes): (f64, f64) = (took_us.parse()?, bytes.parse()?);
    let mut times = Vec::new();
    for line in lines {
        match line.strip_prefix("ok ") {
            Some(us) => times.push(us.parse::<f64>()? / 1e6),
            None => {
                figures.failed += 1;
                figures.failure = Some(line.to_owned());
            }
        }
    }
    times.sort_by(f64::total_cmp);
    let (Some(slowest), Some(median)) = (times.last(), times.get(times.len() / 2)) else {
        bail!("nobody was served: {:?}", figures.failure);
    };
    figures.served += times.len();
    figures.mb_per_s.push(bytes / took_us);
    figures.median_s.push(*median);
    figures.slowest_s.push(*slowest);
    figures.server_cpu_s.push(cpu_ms / 1e3);
    figures.client_cpu_s.push(client_cpu_ms / 1e3);
    println!(
        "{}: {:.0} MB/s, median {median:.2} s, slowest {slowest:.2} s, {} served, {} failed",
        contender.name,
        bytes / took_us,
        times.len(),
        figures.failed
    );
    Ok(())
}

fn write(
    contenders: &[Contender],
    machines: usize,
    lengths: &[u64],
    effort: &Effort,
    report: &mut Report,
) {
    let [own, peers @ ..] = contenders else {
        return;
    };
    let own = &own.figures;
    let rate_of = |each: &&Contender| each.figures.mb_per_s.median();
    let fastest = peers
        .iter()
        .filter(|each| rate_of(each).is_finite())
        .max_by(|one, other| rate_of(one).total_cmp(&rate_of(other)));
    let clients = effort.storm_clients;
    let wanted = clients * effort.storm_rounds;
    report.aim(
        &format!("storm of {clients} clients, served with the right bytes"),
        "all".to_owned(),
        format!("{} of {wanted}", own.served),
        own.served == wanted,
    );
    let rate = own.mb_per_s.median();
    let peer = fastest.as_ref().map_or(f64::NAN, rate_of);
    report.aim(
        "storm, rate",
        format!("≥ {AIM_OF_NGINX} × nginx"),
        format!(
            "{:.2} × ({rate:.0} of {peer:.0} MB/s, {})",
            rate / peer,
            fastest.map_or("nobody", |each| each.name)
        ),
        rate / peer >= AIM_OF_NGINX,
    );
    let unfair = own.slowest_s.median() / own.median_s.median();
    report.aim(
        "storm, the slowest client",
        format!("≤ {AIM_OF_FAIRNESS} × the median one"),
        format!(
            "{unfair:.2} × ({:.2} of {:.2} s)",
            own.slowest_s.median(),
            own.median_s.median()
        ),
        unfair <= AIM_OF_FAIRNESS,
    );
    let rows = contenders.iter().map(|each| {
        let figures = &each.figures;
        vec![
            each.name.to_owned(),
            figures.mb_per_s.text(0),
            figures.median_s.text(2),
            figures.slowest_s.text(2),
            figures.server_cpu_s.text(2),
            figures.client_cpu_s.text(2),
            format!("{} of {wanted}", figures.served),
        ]
    });
    let [kernel, initramfs] = lengths[..] else {
        return;
    };
    report.table(
        "A storm",
        &format!(
            "{clients} clients at the addresses of {machines} adopted machines fetch their scripts, a \
             kernel of {:.1} MB and an initramfs of {:.1} MB at once, one connection each; {} times \
             in turns. Every byte is compared. The clients are one process on the same processors",
            kernel as f64 / 1e6,
            initramfs as f64 / 1e6,
            effort.storm_rounds
        ),
        &[
            "",
            "MB/s",
            "the median client has all, s",
            "the slowest, s",
            "server's CPU time, s",
            "clients', s",
            "served",
        ],
        rows.collect(),
    );
    for each in contenders {
        if let Some(failure) = &each.figures.failure {
            report.note(format!("{} in the storm: {failure}", each.name));
        }
    }
}
