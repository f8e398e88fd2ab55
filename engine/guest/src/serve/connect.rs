//! A TCP connection made from within the machine, joined with standard input and output: what an
//! SSH client's forwarded port leads to.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use vmdeck_protocol::service::CONNECTED;

const TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn serve(host: &str, port: u16) -> io::Result<u8> {
    let stream = connect(host, port)?;
    let mut output = io::stdout().lock();
    output.write_all(&[CONNECTED])?;
    output.flush()?;
    let mut sender = stream.try_clone()?;
    std::thread::spawn(move || {
        // Either end may go first; the other sees it at its next read or write.
        let _ = copy(io::stdin().lock(), &mut sender);
        let _ = sender.shutdown(Shutdown::Write);
    });
    copy(stream, output)?;
    Ok(0)
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = addresses(host, &std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        format!("`{}` is neither an address nor a name in the machine's /etc/hosts", host.escape_debug()),
    );
    for address in addresses {
        match TcpStream::connect_timeout(&SocketAddr::new(address, port), TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Names are those of the machine's own table (hosts(5)): the resolver of a static program would
/// load parts of the image's libc.
fn addresses(host: &str, table: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return vec![address];
    }
    let mut found: Vec<IpAddr> = table
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
        })
        .collect();
    if found.is_empty() && host.eq_ignore_ascii_case("localhost") {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

/// Passes on each piece as it comes.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                to.write_all(&buffer[..length])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_addresses_or_in_the_table() {
        let table = "127.0.1.1 box Box.local # no\n::1 localhost\nbad localhost\n";
        for (host, expected) in [
            ("10.0.0.1", vec!["10.0.0.1"]),
            ("[::1]", vec!["::1"]),
            ("BOX.LOCAL", vec!["127.0.1.1"]),
            ("localhost", vec!["::1"]),
            ("no", vec![]),
        ] {
            let found: Vec<String> = addresses(host, table).iter().map(IpAddr::to_string).collect();
            assert_eq!(found, expected, "{host}");
        }
        assert_eq!(addresses("localhost", "").len(), 2);
    }
}
