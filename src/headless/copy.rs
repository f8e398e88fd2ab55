//! `vmdeck vm cp`

use std::path::PathBuf;

use vmdeck_engine::{Error, Result};

use super::output::bytes;
use super::{Context, Outcome};

/// Either end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Here(PathBuf),
    Machine { name: &'a str, path: &'a str },
}

pub(super) async fn run(context: &Context, source: &str, target: &str) -> Outcome {
    let vms = context.engine.vms();
    let copied = match (end(source)?, end(target)?) {
        (End::Machine { name, path }, End::Here(to)) => {
            context.follow(vms.copy_out(name, path, to, None)).await?
        }
        (End::Here(from), End::Machine { name, path }) => {
            context.follow(vms.copy_in(name, from, path, None)).await?
        }
        (End::Here(_), End::Here(_)) => {
            return Err(Error::usage("neither path is one in a machine").with_hint("write it as NAME:PATH"));
        }
        (End::Machine { .. }, End::Machine { .. }) => {
            return Err(Error::usage("both paths are in machines")
                .with_hint("copy to this host first, and from there to the other machine"));
        }
    };
    for warning in &copied.warnings {
        context.output.message(&format!("warning: {warning}"));
    }
    if !context.output.json(&copied)? {
        context.output.message(&format!("copied {}", bytes(copied.bytes)));
    }
    if copied.is_partial {
        return Err(Error::failed("not everything was copied").with_hint("the warnings say what, and why"));
    }
    Ok(0)
}

/// A colon before any slash makes it a path in a machine, as for scp; `./a:b` is a file here. No path
/// after it is the home of root.
fn end(text: &str) -> Result<End<'_>> {
    match text.split_once(':') {
        Some((name, path)) if !name.contains('/') => {
            if name.is_empty() {
                let error = Error::usage(format!("`{text}` lacks the machine's name"));
                return Err(error.with_hint("write it as NAME:PATH; a file of this host as ./FILE"));
            }
            Ok(End::Machine { name, path })
        }
        _ if text == "-" => Err(Error::usage("a copy is of files and folders, not of a stream")
            .with_hint("`vmdeck vm exec NAME -- cat FILE` writes a file to standard output, `vmdeck vm exec NAME -- tee FILE` takes one from standard input")),
        _ if text.is_empty() => Err(Error::usage("a path is empty")),
        _ => Ok(End::Here(PathBuf::from(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_names_a_machine() {
        assert_eq!(end("box:/etc").unwrap(), End::Machine { name: "box", path: "/etc" });
        assert_eq!(end("box:a:b").unwrap(), End::Machine { name: "box", path: "a:b" });
        assert_eq!(end("box:").unwrap(), End::Machine { name: "box", path: "" });
        for here in ["./box:/etc", "/a:b", "plain", "dir/a:b"] {
            assert_eq!(end(here).unwrap(), End::Here(here.into()), "{here}");
        }
        for bad in ["", ":", ":/x"] {
            assert!(end(bad).is_err(), "{bad}");
        }
    }
}
