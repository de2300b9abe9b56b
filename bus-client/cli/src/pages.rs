//! Shell completions and manual pages, made from the one definition in `cli`.

use clap::{Command, CommandFactory};

use crate::{
    cli::{self, Cli},
    exit::{Exit, Failure},
    output::Output,
};

/// Prints the completion script for a shell.
pub(crate) fn completions(
    options: &cli::Completions,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), NAME, &mut script);
    output.bytes(&script)?;
    Ok(Exit::Done)
}

/// Prints a manual page, or writes all of them into a folder.
pub(crate) fn man(options: &cli::Man, output: &mut Output) -> Result<Exit, Failure> {
    if let Some(dir) = &options.dir {
        clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|error| Failure::about(dir.display(), error))?;
        return Ok(Exit::Done);
    }
    output.bytes(&page(options.verb.as_deref())?)?;
    Ok(Exit::Done)
}

fn page(verb: Option<&str>) -> Result<Vec<u8>, Failure> {
    let mut command = Cli::command();
    command.build();
    let command = match verb {
        None => command,
        Some(verb) => of_verb(&command, verb)?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(Failure::error)?;
    Ok(page)
}

fn of_verb(command: &Command, verb: &str) -> Result<Command, Failure> {
    let found = command.find_subcommand(verb).cloned();
    found.ok_or_else(|| {
        Failure::new(Exit::Usage, format_args!("there is no verb {verb}; see unisono --help"))
    })
}

const NAME: &str = "unisono";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_that_names_its_options() {
        for (verb, words) in [
            (None, "UNISONO_ADDRESS"),
            (Some("listen"), "drop\\-when\\-full"),
            (Some("sub"), "drop\\-when\\-full"),
            (Some("send"), "wait\\-members"),
            (Some("demo"), "traces"),
        ] {
            let page = page(verb).expect("a page");
            let page = String::from_utf8(page).expect("UTF-8");
            assert!(page.contains(words), "{verb:?}: {page}");
        }
    }

    #[test]
    fn a_page_of_no_verb_is_a_usage_error() {
        assert_eq!(page(Some("frobnicate")).expect_err("no page").exit(), Exit::Usage);
    }
}
