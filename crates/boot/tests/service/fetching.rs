//! TFTP and HTTP by the clients that people have.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use wiglaf_wire::boot::{FromBoot, Mac, Stage};

use super::Test;
use super::scene::{HEAD, HTTP_PORT, ITS, MAC, Scene, pattern, settings, text, until};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "tftp_hpa_fetches_a_loader",
        needs: &["tftp"],
        run: tftp_hpa_fetches_a_loader,
    },
    Test {
        name: "atftp_fetches_with_every_option",
        needs: &["atftp"],
        run: atftp_fetches_with_every_option,
    },
    Test {
        name: "curl_fetches_by_tftp",
        needs: &["curl"],
        run: curl_fetches_by_tftp,
    },
    Test {
        name: "two_percent_of_packets_are_lost",
        needs: &["curl", "python3", "udhcpc"],
        run: two_percent_of_packets_are_lost,
    },
    Test {
        name: "curl_fetches_script_and_image",
        needs: &["curl"],
        run: curl_fetches_script_and_image,
    },
    Test {
        name: "a_boot_log_reaches_the_head",
        needs: &["curl"],
        run: a_boot_log_reaches_the_head,
    },
    Test {
        name: "requests_in_a_row_and_in_pieces",
        needs: &[],
        run: requests_in_a_row_and_in_pieces,
    },
    Test {
        name: "a_thousand_clients_at_once",
        needs: &[],
        run: a_thousand_clients_at_once,
    },
];

/// Of a machine that was adopted and has its address.
fn scene() -> Scene {
    let scene = Scene::serving(settings());
    scene.give_address(ITS);
    scene
}

fn assert_same(scene: &Scene, name: &str, length: usize) {
    let got = std::fs::read(scene.path(name)).expect(name);
    assert!(got == pattern(length), "{name}: {} bytes", got.len());
}

fn tftp_hpa_fetches_a_loader() {
    let mut scene = scene();
    let line = format!("tftp -m binary {HEAD} -c get undionly.kpxe got");
    assert!(scene.on_machine(&line).status.success());
    assert_same(&scene, "got", 70_000);
    scene.wait_stage(MAC, Stage::Loader);
    let line = format!("tftp -m binary {HEAD} -c get /etc/passwd none");
    let said = scene.on_machine(&line);
    assert!(
        text(&said.stdout).contains("no such boot program"),
        "{said:?}"
    );
    let line = format!("tftp -m binary {HEAD} -c put got undionly.kpxe");
    let said = scene.on_machine(&line);
    assert!(
        text(&said.stdout).contains("nothing can be written"),
        "{said:?}"
    );
}

fn atftp_fetches_with_every_option() {
    let scene = scene();
    for (options, name) in [
        ("", "a"),
        ("--option|blksize 1428", "b"),
        ("--option|blksize 8192|--option|timeout 3", "c"),
        (
            "--option|tsize 0|--option|windowsize 8|--option|blksize 1000",
            "d",
        ),
        // 70,000 bytes in blocks of eight are 8,750; the next test's file rolls over.
        ("--option|blksize 8|--option|windowsize 16", "e"),
    ] {
        let mut arguments: Vec<&str> = options.split('|').filter(|word| !word.is_empty()).collect();
        let head = HEAD.to_string();
        arguments.extend(["--get", "-r", "boot/undionly.kpxe", "-l", name, &head]);
        let got = scene.on_machine_with("atftp", &arguments);
        assert!(got.status.success(), "{options}: {got:?}");
        assert_same(&scene, name, 70_000);
    }
    // More blocks than 16 bits count.
    let arguments = [
        "--option",
        "blksize 8",
        "--option",
        "windowsize 32",
        "--get",
        "-r",
        "snponly.efi",
        "-l",
        "f",
        "10.9.0.1",
    ];
    std::fs::write(scene.path("loaders/snponly.efi"), pattern(540_000)).expect("a loader");
    let got = scene.on_machine_with("atftp", &arguments);
    assert!(got.status.success(), "{got:?}");
    assert_same(&scene, "f", 540_000);
}

fn curl_fetches_by_tftp() {
    let scene = scene();
    for options in ["", "--tftp-blksize 1400", "--tftp-no-options"] {
        let line = format!("curl -sS {options} -o got tftp://{HEAD}//snponly.efi");
        let got = scene.on_machine(&line);
        assert!(got.status.success(), "{options} {got:?}");
        assert_same(&scene, "got", 512 << 10);
    }
}

fn two_percent_of_packets_are_lost() {
    let Some(mut scene) = Scene::lossy() else {
        return super::say("SKIPPED: two_percent_of_packets_are_lost: no taps can be made here");
    };
    scene.serve(settings());
    let line = "udhcpc -i eth0 -f -n -q -t 5 -T 1 -s /bin/true";
    assert!(scene.on_machine(line).status.success());
    scene.give_address(ITS);
    for options in ["--tftp-blksize 1428", "--tftp-blksize 512"] {
        let line = format!("curl -sS {options} -m 60 -o got tftp://{HEAD}//undionly.kpxe");
        let got = scene.on_machine(&line);
        assert!(got.status.success(), "{got:?}");
        assert_same(&scene, "got", 70_000);
    }
    let line = format!("curl -sS -m 60 -o kernel http://{HEAD}:{HTTP_PORT}/image/default-1/kernel");
    assert!(scene.on_machine(&line).status.success());
    assert_same(&scene, "kernel", 3_000_001);
}

fn curl_fetches_script_and_image() {
    let mut scene = scene();
    let base = format!("http://{HEAD}:{HTTP_PORT}");
    let curl = |scene: &Scene, rest: &str| {
        let said = scene.on_machine(&format!("curl -sS {rest}"));
        assert!(said.status.success(), "{rest}: {said:?}");
        text(&said.stdout)
    };
    let script = curl(&scene, &format!("{base}/script/{MAC}"));
    assert!(script.starts_with("#!ipxe\n"), "{script}");
    let kernel = format!("{base}/image/default-1/kernel");
    assert!(script.contains(&format!("\nkernel {kernel} ")));
    scene.wait_stage(MAC, Stage::Script);
    // Two files by one connection.
    let initramfs = format!("{base}/image/default-1/initramfs");
    let said = curl(
        &scene,
        &format!("-w %{{num_connects}} -o kernel {kernel} -o initramfs {initramfs}"),
    );
    assert_eq!(said, "10");
    assert_same(&scene, "kernel", 3_000_001);
    assert_same(&scene, "initramfs", 100_000);
    scene.wait_stage(MAC, Stage::Kernel);
    scene.wait_stage(MAC, Stage::Initramfs);
    let head = curl(&scene, &format!("-I {kernel}"));
    assert!(head.contains("Content-Length: 3000001\r\n"), "{head}");
    let time = head
        .lines()
        .find_map(|line| line.strip_prefix("X-Wiglaf-Time: "));
    let time: u128 = time.expect("a time").parse().expect("nanoseconds");
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos();
    assert!(now.abs_diff(time) < 60_000_000_000);
    curl(&scene, &format!("-r 1000-1999 -o part {kernel}"));
    let part = std::fs::read(scene.path("part")).expect("a part");
    assert!(part == pattern(2000)[1000..]);
    let said = curl(
        &scene,
        &format!("-r 4000000- -o none -w %{{http_code}} {kernel}"),
    );
    assert_eq!(said, "416");
    // It goes on where it was cut off.
    std::fs::write(scene.path("kernel"), pattern(1_000_000)).expect("a part");
    curl(&scene, &format!("-C - -o kernel {kernel}"));
    assert_same(&scene, "kernel", 3_000_001);
    let said = curl(
        &scene,
        &format!("-o none -w %{{http_code}} {base}/image/none/kernel"),
    );
    assert_eq!(said, "404");
    // Of what it should have, the head hears.
    let (there, away) = (
        scene.path("images/default-1/initramfs"),
        scene.path("images/away"),
    );
    std::fs::rename(&there, &away).expect("it is there");
    let said = curl(
        &scene,
        &format!("-o none -w %{{http_code}} {base}/image/default-1/initramfs"),
    );
    assert_eq!(said, "404");
    std::fs::rename(&away, &there).expect("it is there");
    scene.wait(
        |message| matches!(message, FromBoot::Problem { text, .. } if text.contains("initramfs")),
    );
    // The same machine from an address of the strangers', and with a stranger's card.
    scene.give_address(Ipv4Addr::new(10, 9, 0, 201));
    let said = curl(
        &scene,
        &format!("--interface 10.9.0.201 -o none -w %{{http_code}} {kernel}"),
    );
    assert_eq!(said, "403");
    let said = curl(
        &scene,
        &format!("--interface 10.9.0.201 {base}/script/{MAC}"),
    );
    assert!(
        said.contains("\ndhcp ||") && !said.contains("kernel"),
        "{said}"
    );
    let stranger = Mac([2, 0, 0, 0, 0, 9]);
    scene.set_mac(stranger);
    until(|| {
        let said = curl(&scene, &format!("-o none -w %{{http_code}} {kernel}"));
        (said == "403").then_some(())
    });
    let said = curl(&scene, &format!("{base}/script/{stranger}"));
    assert!(
        said.contains(&format!("wiglaf node adopt {stranger}")),
        "{said}"
    );
    scene.wait_stage(stranger, Stage::Script);
}

fn a_boot_log_reaches_the_head() {
    let mut scene = scene();
    std::fs::write(scene.path("lines"), "stage init\neth0: \x1b[31mup\nmore\n").expect("lines");
    let url = format!("http://{HEAD}:{HTTP_PORT}/lines/{MAC}");
    let line = format!("curl -sS --data-binary @lines -w %{{http_code}} {url}");
    let said = scene.on_machine(&line);
    assert!(text(&said.stdout).ends_with("200"), "{said:?}");
    scene.wait_stage(MAC, Stage::Init);
    let told = scene.wait(|message| matches!(message, FromBoot::Lines { .. }));
    let lines = ["eth0: [31mup", "more"].map(str::to_owned).to_vec();
    assert_eq!(told, FromBoot::Lines { mac: MAC, lines });
    // While no head is there, they are kept for the next.
    scene.head = None;
    std::fs::write(scene.path("lines"), "late\n").expect("lines");
    until(|| {
        text(&scene.on_machine(&line).stdout)
            .ends_with("200")
            .then_some(())
    });
    scene.dial();
    let told = scene.wait(|message| matches!(message, FromBoot::Lines { .. }));
    let lines = vec!["late".to_owned()];
    assert_eq!(told, FromBoot::Lines { mac: MAC, lines });
}

fn requests_in_a_row_and_in_pieces() {
    let scene = scene();
    scene.inside(|| {
        let address = SocketAddrV4::new(HEAD, HTTP_PORT);
        let mut socket = TcpStream::connect(address).expect("a connection");
        socket.set_nodelay(true).expect("no delay");
        let request = "GET /loader/undionly.kpxe HTTP/1.1\r\nRange: bytes=0-4\r\n\r\n";
        for byte in request.bytes() {
            socket.write_all(&[byte]).expect("a byte");
        }
        let last = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        socket
            .write_all((request.repeat(20) + &last).as_bytes())
            .expect("requests");
        let mut answers = Vec::new();
        socket.read_to_end(&mut answers).expect("answers");
        let answers = text(&answers);
        assert_eq!(
            answers.matches("HTTP/1.1 206 Partial Content\r\n").count(),
            22
        );
        let end = format!("Connection: close\r\n\r\n{}", text(&pattern(5)));
        assert!(answers.ends_with(&end));
        // What is no request is told so, and the connection ends.
        let mut socket = TcpStream::connect(address).expect("a connection");
        socket
            .write_all(b"\x16\x03\x01\x02\n\r\n")
            .expect("no request");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("an answer");
        assert!(text(&answer).starts_with("HTTP/1.1 400 "));
    });
}

fn a_thousand_clients_at_once() {
    const CLIENTS: usize = 1000;
    const PER_ADDRESS: usize = 10;
    const THREADS: usize = 4;
    let scene = scene();
    for last in 100..200 {
        scene.give_address(Ipv4Addr::new(10, 9, 0, last));
    }
    let expected = pattern(512 << 10);
    let started = Instant::now();
    scene.inside(|| {
        let request = b"GET /loader/snponly.efi HTTP/1.1\r\nConnection: close\r\n\r\n";
        let mut sockets: Vec<TcpStream> = (0..CLIENTS)
            .map(|number| {
                let last = 100 + u8::try_from(number / PER_ADDRESS).expect("a small number");
                let from = Ipv4Addr::new(10, 9, 0, last);
                let mut socket = connect_from(from);
                let time = Some(Duration::from_secs(60));
                socket.set_read_timeout(time).expect("a time-out");
                socket.write_all(request).expect("a request");
                socket
            })
            .collect();
        std::thread::scope(|scope| {
            for part in sockets.chunks_mut(CLIENTS / THREADS) {
                let expected = &expected;
                scope.spawn(move || {
                    for socket in part {
                        let mut answer = Vec::new();
                        socket.read_to_end(&mut answer).expect("an answer");
                        assert!(answer.ends_with(expected), "{} bytes", answer.len());
                    }
                });
            }
        });
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.pid())).expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kb: u64 = peak
        .and_then(|text| text.trim().strip_suffix(" kB"))
        .and_then(|text| text.parse().ok())
        .expect("a size");
    super::say(&format!(
        "a thousand clients: {} ms, {peak_kb} kB at most",
        started.elapsed().as_millis()
    ));
    assert!(peak_kb < 64 << 10, "{peak_kb} kB");
}

fn connect_from(address: Ipv4Addr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let made = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&made, &SocketAddrV4::new(address, 0)).expect("an address");
    connect(&made, &SocketAddrV4::new(HEAD, HTTP_PORT)).expect("a connection");
    made.into()
}
