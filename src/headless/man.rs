//! Manual pages and completions, generated from the command line's own definition.

use std::path::Path;

use vmdeck_engine::Error;

use super::{Outcome, output};

pub(super) fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "vmdeck", &mut script);
    output::write(&script).map(|()| 0)
}

pub(super) fn pages(directory: Option<&Path>) -> Outcome {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(super::command())
            .render(&mut page)
            .map_err(|error| Error::io("cannot make the manual page", error))?;
        return output::write(&page).map(|()| 0);
    };
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(super::command(), directory))
        .map_err(|error| {
            Error::io(format!("cannot write manual pages into `{}`", directory.display()), error)
        })?;
    Ok(0)
}
