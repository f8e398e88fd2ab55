//! The console on a data directory given as the first argument (`$VMDECK_DATA_DIR` otherwise), without
//! the rest of the program: for looking at it while it is worked on. The second argument is a theme.

use std::path::PathBuf;
use std::process::ExitCode;

use vmdeck_engine::Engine;
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_ui::{ConsoleOptions, ThemeChoice};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let path = arguments.next().map(PathBuf::from).or_else(|| DataDirectory::default_path().ok());
    let Some(path) = path else { return ExitCode::from(2) };
    let theme = arguments.next().and_then(|theme| ThemeChoice::parse(&theme.to_string_lossy()));
    let Ok(runtime) = tokio::runtime::Runtime::new() else { return ExitCode::FAILURE };
    let options = ConsoleOptions {
        data_label: path.display().to_string(),
        theme: theme.unwrap_or_default(),
        ascii: std::env::var_os("VMDECK_ASCII").is_some(),
        ..ConsoleOptions::default()
    };
    match vmdeck_ui::run(options, runtime.handle(), Engine::open(path)) {
        Ok(ending) => ExitCode::from(ending.exit_code()),
        Err(error) => {
            tracing::error!("{}", error.full_message());
            ExitCode::from(error.kind().exit_code())
        }
    }
}
