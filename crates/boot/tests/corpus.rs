//! S1 without nightly: the corpus of the fuzz targets, and changed copies of it.

#[path = "../../../fuzz/changed.rs"]
mod changed;
#[path = "../../../fuzz/inputs.rs"]
mod inputs;

use changed::run;

#[test]
fn no_packet_of_dhcp_does_harm() {
    run("dhcp", inputs::dhcp);
}

#[test]
fn no_packet_of_tftp_does_harm() {
    run("tftp", inputs::tftp);
}

#[test]
fn no_request_of_http_does_harm() {
    run("http", inputs::http);
}

#[test]
fn no_router_solicitation_does_harm() {
    run("router", inputs::router);
}

#[test]
fn no_message_of_dns_does_harm() {
    run("dns", inputs::dns);
}
