//! Proxies, as the usual variables name them.
//!
//! The registry has a name that no resolver knows (RFC 6761, section 6.4), so that only a proxy leads
//! there.

use std::process::Command;

use crate::support::deck::{Deck, Ended, finish};
use crate::support::layout::{Layout, TarBuilder};
use crate::support::proxy::Proxy;
use crate::support::registry::{Registry, Tls};

const HOST: &str = "registry.invalid";

fn push(registry: &Registry) {
    let folder = tempfile::tempdir().unwrap();
    let archive = TarBuilder::default().directory("etc/", 0o755).file("etc/name", 0o644, b"x").finish();
    Layout::new(folder.path()).layer(&archive).finish();
    registry.push(folder.path(), "app:1");
}

fn pull(deck: &Deck, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let reference = format!("{HOST}/app:1");
    let mut command: Command = deck.command(["image", "pull", &reference, "--name", name]);
    command.args(arguments).envs(variables.iter().copied());
    finish(command.spawn().unwrap())
}

#[test]
fn a_pull_over_plain_http_goes_through_the_proxy_unless_the_host_is_exempt() {
    let Some(registry) = Registry::start() else { return };
    push(&registry);
    let proxy = Proxy::start(registry.port());
    let deck = Deck::new();
    let plain = ["--plain-http"];
    for (name, variable) in [("upper", "HTTP_PROXY"), ("lower", "http_proxy"), ("all", "ALL_PROXY")] {
        let before = proxy.asked().len();
        pull(&deck, name, &plain, &[(variable, &proxy.url())]).expect(0);
        let asked = proxy.asked();
        assert!(asked.len() > before, "{variable} was not obeyed");
        let wanted = format!("GET http://{HOST}/v2/app/manifests/1 HTTP/1.1");
        assert!(asked[before..].contains(&wanted), "{asked:?}");
    }

    // The first pull took the layer, too.
    assert!(proxy.asked().iter().any(|line| line.contains("/v2/app/blobs/")), "{:?}", proxy.asked());
    let before = proxy.asked();
    for exempt in [HOST, "invalid", "*"] {
        let variables = [("HTTP_PROXY", proxy.url()), ("NO_PROXY", exempt.to_owned())];
        let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
        pull(&deck, "exempt", &plain, &variables).expect(1).says(&[HOST, "next:"]);
    }
    assert_eq!(proxy.asked(), before);
    let variables = [("HTTP_PROXY", proxy.url()), ("NO_PROXY", "other.invalid,10.0.0.0/8".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    pull(&deck, "others-are-exempt", &plain, &variables).expect(0);
    assert!(proxy.asked().len() > before.len());
}

#[test]
fn a_pull_over_https_goes_through_a_tunnel_of_the_proxy() {
    let Some(tls) = Tls::for_host(HOST) else { return };
    let Some(registry) = Registry::start_with_tls(&tls) else { return };
    push(&registry);
    let proxy = Proxy::start(registry.port());
    let deck = Deck::new();
    deck.folder(".config");
    deck.folder(".config/containers");
    deck.folder(".config/containers/certs.d");
    deck.write(&format!(".config/containers/certs.d/{HOST}/ca.crt"), &tls.certificate());
    pull(&deck, "app", &[], &[("HTTPS_PROXY", &proxy.url())]).expect(0);
    let asked = proxy.asked();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|line| *line == format!("CONNECT {HOST}:443 HTTP/1.1")), "{asked:?}");

    // The variable for plain HTTP is not for this.
    pull(&deck, "other", &[], &[("HTTP_PROXY", &proxy.url())]).expect(1).says(&[HOST]);
    assert_eq!(proxy.asked(), asked);
}

#[test]
fn no_proxy_is_asked_for_what_is_on_this_machine() {
    let Some(registry) = Registry::start() else { return };
    push(&registry);
    let proxy = Proxy::start(registry.port());
    let deck = Deck::new();
    let mut command = deck.command(["image", "pull", &registry.reference("app:1"), "--name", "app"]);
    command.env("HTTP_PROXY", proxy.url()).env("ALL_PROXY", proxy.url());
    finish(command.spawn().unwrap()).expect(0);
    assert_eq!(proxy.asked(), [""; 0]);
}
