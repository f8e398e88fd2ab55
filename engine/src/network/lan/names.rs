//! Answers for the names of machines, as a name server does (RFC 1035): `NAME` and `NAME.vmdeck` have
//! the machine's address, and its address has the name.
//!
//! What is none of ours is refused, not denied: whoever asks then asks the next server it knows, which
//! is the hypervisor's, which asks the host's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The domain of machines' names.
pub const DOMAIN: &str = "vmdeck";

const HEADER: usize = 12;
/// Longest name, in bytes as they are sent.
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_ANY: u16 = 255;
const CLASS_INTERNET: u16 = 1;

const NO_ERROR: u8 = 0;
const NOT_IMPLEMENTED: u8 = 4;
const NAME_ERROR: u8 = 3;
const REFUSED: u8 = 5;

/// How long an answer may be kept, in seconds: machines come and go.
const LIFETIME: u32 = 5;

/// The machines that are there, by their names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    addresses: BTreeMap<String, Ipv4Addr>,
}

/// What there is to say to a question.
enum Finding {
    Address(Ipv4Addr),
    Name(String),
    /// The name is there, and has nothing of the kind.
    Nothing,
    NoSuchName,
    /// Others may know.
    NotOurs,
}

impl Names {
    /// Of two machines with one name the first has it.
    pub(super) fn new(machines: impl IntoIterator<Item = (String, Ipv4Addr)>) -> Self {
        let mut addresses = BTreeMap::new();
        for (name, address) in machines {
            if !name.is_empty() && name.len() <= MAX_LABEL {
                addresses.entry(name.to_ascii_lowercase()).or_insert(address);
            }
        }
        Self { addresses }
    }

    /// The answer to a message, `resolver` being of their network. `None` for what is no question.
    pub(super) fn answer(&self, message: &[u8], resolver: Ipv4Addr) -> Option<Vec<u8>> {
        let (header, rest) = message.split_at_checked(HEADER)?;
        // The highest bit marks answers, which nobody here has asked for.
        if header[2] & 0x80 != 0 {
            return None;
        }
        let operation = header[2] >> 3 & 0xf;
        if operation != 0 {
            return Some(reply(header, &[], NOT_IMPLEMENTED, None));
        }
        if header[4..6] != [0, 1] {
            return None;
        }
        let (name, length) = read_name(rest)?;
        let kind = u16::from_be_bytes(rest.get(length..length + 2)?.try_into().ok()?);
        let class = u16::from_be_bytes(rest.get(length + 2..length + 4)?.try_into().ok()?);
        let question = &rest[..length + 4];
        let finding =
            if class == CLASS_INTERNET { self.find(&name, kind, resolver) } else { Finding::NotOurs };
        Some(match finding {
            Finding::Address(address) => {
                reply(header, question, NO_ERROR, Some((TYPE_A, address.octets().to_vec())))
            }
            Finding::Name(name) => reply(header, question, NO_ERROR, Some((TYPE_PTR, encoded(&name)))),
            Finding::Nothing => reply(header, question, NO_ERROR, None),
            Finding::NoSuchName => reply(header, question, NAME_ERROR, None),
            Finding::NotOurs => reply(header, question, REFUSED, None),
        })
    }

    fn find(&self, labels: &[String], kind: u16, resolver: Ipv4Addr) -> Finding {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let of = |name: &str| match self.addresses.get(name) {
            Some(address) if matches!(kind, TYPE_A | TYPE_ANY) => Finding::Address(*address),
            Some(_) => Finding::Nothing,
            None => Finding::NoSuchName,
        };
        match labels[..] {
            [name, DOMAIN] => of(name),
            [.., _, DOMAIN] => Finding::NoSuchName,
            [DOMAIN] => Finding::Nothing,
            [name] if self.addresses.contains_key(name) => of(name),
            [d, c, b, a, "in-addr", "arpa"] => {
                reverse([a, b, c, d], resolver).map_or(Finding::NotOurs, |asked| {
                    let owner = self.addresses.iter().find(|(_, address)| **address == asked);
                    match owner {
                        Some((name, _)) if matches!(kind, TYPE_PTR | TYPE_ANY) => Finding::Name(name.clone()),
                        Some(_) => Finding::Nothing,
                        None => Finding::NoSuchName,
                    }
                })
            }
            _ => Finding::NotOurs,
        }
    }
}

/// The address that is asked about, when it is one of the resolver's network.
fn reverse(parts: [&str; 4], resolver: Ipv4Addr) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    for (octet, part) in octets.iter_mut().zip(parts) {
        *octet = part.parse().ok()?;
    }
    (octets[..3] == resolver.octets()[..3]).then(|| octets.into())
}

/// Reads a name without pointers, as questions have it: its labels in lower case, and its length.
fn read_name(bytes: &[u8]) -> Option<(Vec<String>, usize)> {
    let (mut labels, mut at) = (Vec::new(), 0);
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels, at));
        }
        if length > MAX_LABEL || at + length > MAX_NAME {
            return None;
        }
        let label = bytes.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in [name, DOMAIN] {
        // Longer ones are not taken up.
        bytes.push(u8::try_from(label.len()).unwrap_or_default());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn reply(header: &[u8], question: &[u8], code: u8, answer: Option<(u16, Vec<u8>)>) -> Vec<u8> {
    let mut message = header[..2].to_vec();
    // An answer by who knows for sure; the kind of request, and whether more was wished for, as asked.
    message.push(0x84 | header[2] & 0x79);
    message.push(code);
    message.extend([0, u8::from(!question.is_empty()), 0, u8::from(answer.is_some()), 0, 0, 0, 0]);
    message.extend(question);
    if let Some((kind, data)) = answer {
        // Of the name that was asked for, which begins at byte 12.
        message.extend([0xc0, 0x0c]);
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_INTERNET.to_be_bytes());
        message.extend(LIFETIME.to_be_bytes());
        message.extend(u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
        message.extend(data);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 1);

    fn names() -> Names {
        let web = Ipv4Addr::new(10, 80, 0, 2);
        Names::new([
            ("Web".to_owned(), web),
            ("web".to_owned(), RESOLVER),
            ("db-1".to_owned(), Ipv4Addr::new(10, 80, 0, 3)),
        ])
    }

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    /// Code and data of the answer.
    fn ask(name: &str, kind: u16) -> (u8, Option<Vec<u8>>) {
        let asked = question(name, kind);
        let answer = names().answer(&asked, RESOLVER).unwrap();
        assert_eq!(answer[..2], [0xab, 0xcd]);
        assert_eq!(answer[2], 0x85, "an answer with authority to a request for more");
        assert_eq!(answer[HEADER..asked.len()], asked[HEADER..]);
        let data = (answer[7] == 1).then(|| answer[asked.len() + 12..].to_vec());
        assert_eq!(answer.len(), asked.len() + data.as_ref().map_or(0, |data| 12 + data.len()));
        (answer[3], data)
    }

    #[test]
    fn names_with_and_without_their_domain_have_an_address() {
        let web = Some(vec![10, 80, 0, 2]);
        for name in ["web", "WEB", "web.vmdeck", "Web.VMdeck."] {
            assert_eq!(ask(name, TYPE_A), (NO_ERROR, web.clone()), "{name}");
        }
        assert_eq!(ask("db-1.vmdeck", TYPE_ANY), (NO_ERROR, Some(vec![10, 80, 0, 3])));
        let ipv6 = 28;
        assert_eq!(ask("web", ipv6), (NO_ERROR, None), "there is the name, and no such address");
        assert_eq!(ask("vmdeck", TYPE_A), (NO_ERROR, None));
    }

    #[test]
    fn what_is_not_there_is_denied_and_what_others_may_know_refused() {
        assert_eq!(ask("none.vmdeck", TYPE_A), (NAME_ERROR, None));
        assert_eq!(ask("a.web.vmdeck", TYPE_A), (NAME_ERROR, None));
        for name in
            ["none", "example.org", "web.example.org", "", "3.0.99.10.in-addr.arpa", "x.0.80.10.in-addr.arpa"]
        {
            assert_eq!(ask(name, TYPE_A), (REFUSED, None), "{name}");
        }
    }

    #[test]
    fn an_address_has_its_name() {
        assert_eq!(
            ask("3.0.80.10.in-addr.arpa", TYPE_PTR),
            (NO_ERROR, Some(b"\x04db-1\x06vmdeck\0".to_vec()))
        );
        assert_eq!(ask("9.0.80.10.in-addr.arpa", TYPE_PTR), (NAME_ERROR, None));
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let answer = |change: fn(&mut Vec<u8>)| {
            let mut message = question("web", TYPE_A);
            change(&mut message);
            names().answer(&message, RESOLVER)
        };
        assert!(answer(|message| message[2] |= 0x80).is_none(), "an answer");
        assert!(answer(|message| message[5] = 2).is_none(), "two questions");
        assert!(answer(|message| message[HEADER] = 0xc0).is_none(), "a pointer");
        assert!(answer(|message| message.truncate(20)).is_none());
        assert_eq!(answer(|message| message[2] = 0x28).unwrap()[3], NOT_IMPLEMENTED);
        assert_eq!(answer(|message| *message.last_mut().unwrap() = 3).unwrap()[3], REFUSED);
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Some(answer) = names().answer(&noise, RESOLVER) {
                prop_assert!(answer.len() <= noise.len() + 300);
            }
        }
    }
}
