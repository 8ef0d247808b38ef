//! The manual and the completions are those of the command as it is; `DM_THIN_UPDATE_GENERATED=1` writes them anew.

use std::fs;
use std::path::Path;

use clap_complete::Shell;

fn check(name: &str, text: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated").join(name);
    if std::env::var_os("DM_THIN_UPDATE_GENERATED").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let kept = fs::read(&path).unwrap_or_default();
    assert!(kept == text, "{} is of another version: DM_THIN_UPDATE_GENERATED=1", path.display());
}

#[test]
fn the_manual_is_of_this_version() {
    let mut page = Vec::new();
    clap_mangen::Man::new(dm_thin_cli::arguments()).render(&mut page).unwrap();
    check("dm-thin.1", &page);
    let mut command = dm_thin_cli::arguments();
    command.build();
    check_verbs("dm-thin", &command);
}

fn check_verbs(name: &str, command: &clap::Command) {
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let name = format!("{name}-{}", verb.get_name());
        let mut page = Vec::new();
        clap_mangen::Man::new(verb.clone()).render(&mut page).unwrap();
        check(&format!("{name}.1"), &page);
        check_verbs(&name, verb);
    }
}

#[test]
fn the_completions_are_of_this_version() {
    for (shell, name) in
        [(Shell::Bash, "dm-thin.bash"), (Shell::Zsh, "_dm-thin"), (Shell::Fish, "dm-thin.fish")]
    {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut dm_thin_cli::arguments(), "dm-thin", &mut text);
        check(name, &text);
    }
}

#[test]
fn the_arguments_do_not_contradict_each_other() {
    dm_thin_cli::arguments().debug_assert();
}
