//! `WWW-Authenticate`: how a registry wants to be asked (RFC 9110, section 11.6.1; the Bearer
//! parameters are those of the distribution project's token specification, `spec/auth/token.md`).

/// One way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Reads all challenges of one header value; unknown schemes are left out.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header;
    let mut scheme = String::new();
    let mut parameters: Vec<(String, String)> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let token = token(rest);
        if token.is_empty() {
            break;
        }
        let after = &rest[token.len()..];
        if let Some(value) = after.trim_start().strip_prefix('=') {
            let (value, after) = parameter_value(value.trim_start());
            parameters.push((token.to_ascii_lowercase(), value));
            rest = after;
        } else {
            finish(&scheme, &mut parameters, &mut challenges);
            scheme = token.to_ascii_lowercase();
            rest = after;
        }
    }
    finish(&scheme, &mut parameters, &mut challenges);
    challenges
}

fn finish(scheme: &str, parameters: &mut Vec<(String, String)>, challenges: &mut Vec<Challenge>) {
    let mut take = |name: &str| {
        let position = parameters.iter().position(|(key, _)| key == name)?;
        Some(parameters.swap_remove(position).1)
    };
    match scheme {
        "basic" => challenges.push(Challenge::Basic),
        "bearer" => {
            if let Some(realm) = take("realm") {
                let (service, scope) = (take("service"), take("scope"));
                challenges.push(Challenge::Bearer { realm, service, scope });
            }
        }
        _ => {}
    }
    parameters.clear();
}

/// The token at the start (RFC 9110, section 5.6.2).
fn token(text: &str) -> &str {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)))
        .unwrap_or(text.len());
    &text[..end]
}

/// A token or quoted string, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((position, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[position + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        assert_eq!(
            parse(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull,push""#
            ),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/debian:pull,push")
            )]
        );
        assert_eq!(parse(r#"Basic realm="vmdeck \"test\"""#), [Challenge::Basic]);
        assert_eq!(
            parse(r#"Negotiate abc==, Basic realm="x", BEARER realm=https://a/b , service=s"#),
            [Challenge::Basic, bearer("https://a/b", Some("s"), None)]
        );
        assert_eq!(parse("Bearer service=x"), []);
        assert_eq!(parse(r#"Bearer realm="unfinished"#), [bearer("unfinished", None, None)]);
        assert_eq!(parse(""), []);
    }

    proptest! {
        #[test]
        fn no_header_panics(text in "\\PC{0,80}") {
            parse(&text);
        }
    }
}
